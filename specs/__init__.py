"""Every noun that crosses a floor, and what the models and ops mean.

Importing this package imports nothing else, so an edge device with numpy alone may read a bundle.
"""
