"""Proof. Real parts wherever they start fast enough, fakes only at ports."""
