"""Fuzzing of a real host over its sockets: what a seed corpus of requests becomes when it is changed a little.

`corpus.py` reads the seeds, `mutate.py` changes them, `wire.py` sends them, many in one write over several
connections, and reads the answers, `check.py` says what an answer may be, `worker.py` is a process that does so,
`run.py` has some of them work, looks at the host's memory, and reports.
"""
