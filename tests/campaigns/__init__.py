"""Campaigns: promises tried many times over. Each has a short form, run by pytest, and a long one.

The long form of each is one command: ``python -m tests.campaigns.kills --help``.
"""
