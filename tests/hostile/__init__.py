"""Images that nobody should trust: what each must turn into, one table of cases."""
