"""Estimates as jobs of a Ray cluster: submitted, watched and stopped through its Jobs API."""
