"""Mistakes that systems like this one really make, each in place of a part that does it right.

A bug is composed in by its test (`Parts`); all around it runs the real thing. Where a mistake needs two to meet, the
bug brings its own barrier, so that it shows every time.
"""
