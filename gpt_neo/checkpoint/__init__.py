"""Carrying weights in and out."""
