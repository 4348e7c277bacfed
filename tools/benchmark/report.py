"""The report of a run: where it ran, and the table for the README."""
import os
import subprocess
from pathlib import Path

from benchmark import routes
from benchmark.page_cache import memory
from benchmark.rows import MIB


def first_match(path, key):
    for line in Path(path).read_text().splitlines():
        if line.startswith(key):
            return line.split(":", 1)[1].strip()
    return "unknown"


def filesystem_of(path):
    best = ("", "unknown")
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mount, kind, *_ = line.split()
        if (str(path) + "/").startswith(mount.rstrip("/") + "/") and len(mount) >= len(best[0]):
            best = (mount, kind)
    return best[1]


def commit(root):
    def git(*arguments):
        return subprocess.run(["git", "-C", root, *arguments], capture_output=True, text=True).stdout.strip()
    changes = " with changes" if git("status", "--porcelain") else ""
    return (git("rev-parse", "--short", "HEAD") or "unknown") + changes


def machine(directory, root):
    return {
        "cpu": first_match("/proc/cpuinfo", "model name"),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "available_gib": round(memory("MemAvailable") / 2**30, 1),
        "kernel": os.uname().release,
        "filesystem": filesystem_of(directory),
        "commit": commit(root),
    }


def markdown(result):
    tables = (merges_table, routes_table, plans_table, series_table, peers_table, footnote)
    return "\n\n".join(part for part in (table(result) for table in tables) if part)


def table(header, rows):
    if not rows:
        return ""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row + [""] * (len(header) - len(row))) + " |" for row in rows])


def verdict(entry, what, limit="at most"):
    """The target of a check and whether it was met; a dash when there is none."""
    for one in entry.get("checks", []):
        if one["what"] == what:
            return f"{limit} {one['target']:g}{'' if one['met'] else ', **missed**'}"
    return "-"


def recipe_of(entry):
    text = entry["method"]
    parameters = entry["parameters"]
    if "density" in parameters:
        text += f" density {parameters['density']}"
    if "scope" in parameters:
        text += f", {parameters['scope']} scope"
    if entry["cached"]:
        text += ", cached statistics"
    return text


def merges_table(result):
    header = ["row", "recipe", "models", "cache", "braid s", "limit s", "ratio", "target", "GB/s in + out",
              "GB from disk", "CPU s", "peak MiB (--memory)"]
    rows = []
    for entry in result["rows"]:
        if entry["kind"] != "merge":
            continue
        state = entry["state"] + (f", cgroup {entry['cgroup'] // MIB} MiB" if entry["cgroup"] else "")
        models = f"{entry['model']} {entry['dtype']}, base + {entry['finetunes']}"
        row = [entry["name"], recipe_of(entry), models, state]
        if "seconds" not in entry:
            rows.append(row + [missing(entry)])
            continue
        rows.append(row + [
            f"{entry['seconds']:.2f}", f"{entry['limit']['seconds']:.2f}", f"{entry['ratio']:.2f}",
            verdict(entry, "x limit"), f"{entry['gb_per_second']:.2f}", disk_bytes(entry),
            f"{entry['cpu_seconds']:.1f}",
            f"{entry['peak_bytes'] / MIB:.0f} ({entry['memory']}"
            f"{', **over**' if 'missed' in verdict(entry, 'peak memory') else ''})"])
    return table(header, rows)


def disk_bytes(entry):
    text = f"{entry['disk_read_bytes'] / 1e9:.1f}"
    return text + (f" (plan: {entry['bytes_planned'] / 1e9:.1f})" if entry["planned"] else "")


def missing(entry):
    return f"skipped: {entry['skipped']}" if "skipped" in entry else f"**failed**: {entry['failed'].splitlines()[0]}"


def routes_table(result):
    rows = []
    for entry in result["rows"]:
        if entry["kind"] == "route":
            models = f"{entry['model']} {entry['dtype']}, base + {entry['finetunes']}"
            told = routes.table_row(entry) if "seconds" in entry else [missing(entry)]
            rows.append([entry["name"], models, entry["state"], *told])
    return table(["another way", "models", "cache", "braid s", "beside", "s", "ratio", "GB/s of plain bytes per core",
                  "stored", "peak MiB (--memory)"], rows)


def plans_table(result):
    rows = []
    for entry in result["rows"]:
        if entry["kind"] != "plan":
            continue
        checkpoints = f"{entry['finetunes'] + 1} of {entry['tensors']} tensors in {entry['shards']} shards"
        row = [entry["name"], checkpoints]
        if "seconds" not in entry:
            rows.append(row + [missing(entry)])
            continue
        rows.append(row + [f"{entry['seconds']:.2f}", verdict(entry, "seconds"), f"{entry['peak_bytes'] / MIB:.0f}",
                           verdict(entry, "peak memory")])
    return table(["plan", "checkpoints", "s", "target", "peak MiB", "target"], rows)


def series_table(result):
    rows = []
    for series in result["series"]:
        label = f"{series['name']} ({', '.join(series['rows'])})"
        if "skipped" in series:
            rows.append([label, f"skipped: {series['skipped']}"])
            continue
        deviations = ", ".join(f"{100 * share:+.0f} %" for share in series["deviations"].values())
        rows.append([label, f"{series['a_seconds']:.2f}", verdict(series, "a"), f"{series['b_seconds_per_gb']:.3f}",
                     deviations, verdict(series, "deviation of b"), f"{series['peak_spread'] / MIB:.1f}",
                     verdict(series, "spread of peak memory")])
    return table(["time = a + b bytes over", "a s", "target", "b s/GB", "each row's b", "target", "peaks differ by MiB",
                  "target"], rows)


def peers_table(result):
    rows = []
    for entry in result["rows"]:
        for name, peer in entry.get("peers", {}).items():
            row = [entry["name"], name]
            if "seconds" not in peer:
                rows.append(row + [missing(peer)])
                continue
            target = verdict(entry, "x faster than mergekit", "at least") if name == "mergekit" else "-"
            row += [f"{peer['seconds']:.1f}", f"{peer['times_braid']:.1f}", target, f"{peer['cpu_seconds']:.1f}",
                    f"{peer['peak_bytes'] / MIB:.0f}"]
            agreement = peer.get("agreement")
            if agreement:
                row.append(f"{agreement['equal'] / agreement['elements']:.2%}")
            else:
                row.append(missing(peer))
            rows.append(row)
    return table(["row", "peer", "s", "x braid's time", "target", "CPU s", "peak MiB", "elements equal to braid's"],
                 rows)


def footnote(result):
    where = result["machine"]
    return (f"{where['cpu']}, {where['cores']} cores, {where['memory_gib']} GiB, Linux {where['kernel']}, "
            f"{where['filesystem']}; commit {where['commit']}; `{result['command']}`")
