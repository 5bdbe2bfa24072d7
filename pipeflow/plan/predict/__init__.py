"""Seconds, bytes and memory of every schedule, cut and rival on machines that are described or measured."""
