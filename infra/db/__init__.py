"""SQLite and PostgreSQL behind one code: tables, transactions, the write side's stores and its reads.

SQLAlchemy Core without its ORM: a use case locks rows, decides, and writes by compare-and-set, so there is no
identity map or unit of change to keep in step with that. What is written waits for the next statement or the commit,
because on PostgreSQL round trips are what a booking costs (`writes.py`).
"""
