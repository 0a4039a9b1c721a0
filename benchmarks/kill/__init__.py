"""Kills the host at random moments, and looks whether the next start is clean and answers right."""
