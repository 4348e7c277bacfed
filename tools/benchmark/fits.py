"""Whether time is a line over bytes: seconds = a + b bytes, fitted to rows that differ in one thing."""
from benchmark.rows import MIB


def fit_line(points):
    """(a, b) of least squares over (bytes, seconds), each error relative to its point's seconds: runs differ by a
    share of their length, and otherwise the longest run alone would settle `a`."""
    weights = [1 / seconds ** 2 for _, seconds in points]
    total = sum(weights)
    mean_x = sum(w * x for w, (x, _) in zip(weights, points)) / total
    mean_y = sum(w * y for w, (_, y) in zip(weights, points)) / total
    spread = sum(w * (x - mean_x) ** 2 for w, (x, _) in zip(weights, points))
    if spread == 0:
        raise ValueError("a line needs points of two sizes")
    b = sum(w * (x - mean_x) * (y - mean_y) for w, (x, y) in zip(weights, points)) / spread
    return mean_y - b * mean_x, b


def check(what, value, target, met, unit=""):
    return {"what": what, "value": value, "target": target, "unit": unit, "met": bool(met)}


def fit_series(series, entries):
    """What the rows of a series show together, or why nothing."""
    result = {"name": series.name, "rows": [entry["name"] for entry in entries]}
    measured = [entry for entry in entries if "seconds" in entry]
    # As often as they were read: of 32 fine-tunes under 128 MiB no large tensor stays mapped, so it is read in each
    # round.
    points = [(entry["braid"]["bytes_read"] + entry["bytes_out"], entry["seconds"]) for entry in measured]
    if len({x for x, _ in points}) < 2:
        return {**result, "skipped": "needs two rows of the series or more"}
    a, b = fit_line(points)
    # What a row's own seconds per byte would be, after the line's share that no byte costs.
    deviations = {entry["name"]: (y - a) / x / b - 1 for entry, (x, y) in zip(measured, points)}
    peaks = [entry["peak_bytes"] for entry in measured]
    result.update(a_seconds=a, b_seconds_per_gb=b * 1e9, deviations=deviations, peak_spread=max(peaks) - min(peaks))
    worst = max(abs(d) for d in deviations.values())
    result["checks"] = []
    if series.intercept is not None:
        result["checks"].append(check("a", a, series.intercept, a <= series.intercept, "s"))
    if series.deviation is not None:
        result["checks"].append(check("deviation of b", worst, series.deviation, worst <= series.deviation))
    if series.peak_spread is not None:
        spread = result["peak_spread"] / MIB
        result["checks"].append(check("spread of peak memory", spread, series.peak_spread, spread <= series.peak_spread,
                                      "MiB"))
    return result
