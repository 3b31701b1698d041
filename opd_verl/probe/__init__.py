"""Forecasts before a run: can this student learn from this teacher by OPD?"""
