"""Gradient alignment on a generation tree: does the teacher point toward success, token by token (Unmasking)?"""
