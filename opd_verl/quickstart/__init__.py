"""The quickstart: a tiny teacher and student on a generated arithmetic task, small enough for two CPU cores."""
