"""The reference and the manual pages, written from the code: ``make reference``."""
