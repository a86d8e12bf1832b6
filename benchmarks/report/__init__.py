"""What benchmark results say: tables, pages, a chart and comparisons, each made by one module.

Nothing here imports torch or fusedrnn (the chart needs matplotlib), so that a page can be made and
checked where neither is installed. Every figure is derived from the results' timings.
"""
