"""The soak: a host in a small container, asked by everybody, for as long as one likes, while things go wrong.

`models.py` makes the models and says what is right, `wire.py` and `forms.py` carry questions and answers,
`residents.py` asks the models that are always in use and is measured, `traffic.py` asks all the others,
`faults.py` does what goes wrong, `record.py` keeps what was seen, `spent.py` where the time went, `verdict.py`
judges it, `run.py` is the order of it all.
"""
