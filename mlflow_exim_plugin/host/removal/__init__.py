"""The one place that takes things away at a source: nothing else in the package does.

Only what is named goes, and what something else uses stays.
"""
