"""Certificates in, one bound out."""
