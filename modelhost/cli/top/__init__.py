"""`modelhost top`: a live view of a running host in the terminal.

What is shown is made of the feed's JSON by pure functions (`view`, `models`, `events`), which need nothing but the
standard library: `--once` prints them as they are. The live view (`app`, `dialogs`) is textual's, from the extra
`modelhost[top]`, and imported only there.
"""
