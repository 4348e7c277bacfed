"""The bench: what it computes from what it measured, how it changes the machine's state and leaves it. That it runs as
a whole is bench.quick's part. No time is asserted."""

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import unittest
import xml.etree.ElementTree
from pathlib import Path

from support import BRAID, MIB, SEED, main, write_family

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

from benchmark import families, fits, outputs, page_cache, plot, report, rows
from benchmark.cgroup import MemoryCgroup
from benchmark.limit import Limit
from benchmark.process import Failed, run_measured
from benchmark.skipped import Skipped

LIMIT = Path(BRAID).parent / "braid-limit"


def entry_of(name, bytes_read, seconds, peak=100 * MIB, finetunes=3):
    return {
        "name": name, "kind": "merge", "method": "ties", "parameters": {"density": 0.2}, "model": "m", "dtype": "bf16",
        "finetunes": finetunes, "memory": "128MiB", "state": "cold", "cgroup": None, "planned": False, "cached": False,
        "seconds": seconds, "cpu_seconds": 1.0, "peak_bytes": peak, "disk_read_bytes": bytes_read,
        "bytes_in": bytes_read, "bytes_out": 0, "limit": {"seconds": seconds / 1.1}, "ratio": 1.1, "gb_per_second": 1.0,
        "braid": {"parameters": bytes_read, "bytes_read": bytes_read},
        "checks": [fits.check("x limit", 1.1, 1.15, True), fits.check("peak memory", 100, 192, True, "MiB")],
    }


class BenchTest(unittest.TestCase):
    def setUp(self):
        # Not in /tmp, which may be a file system that lives in the page cache.
        self.dir = Path(tempfile.mkdtemp(prefix="bench-test-", dir=Path(BRAID).parent))
        self.addCleanup(shutil.rmtree, self.dir, ignore_errors=True)

    def file(self, name, size):
        path = self.dir / name
        path.write_bytes(random.Random(SEED).randbytes(size))
        return path


class Fits(BenchTest):
    def test_a_line_is_found_again(self):
        a, b = fits.fit_line([(x, 0.25 + 3e-9 * x) for x in (1e8, 7e8, 5e9, 2e10)])
        self.assertAlmostEqual(a, 0.25, places=9)
        self.assertAlmostEqual(b * 1e9, 3, places=9)

    def test_one_row_off_the_line_is_named(self):
        series = rows.Series("size", 0.3, 0.10, 16)
        entries = [entry_of(f"r{i}", x, 0.1 + 2e-9 * x) for i, x in enumerate((1e9, 2e9, 4e9, 8e9, 16e9))]
        straight = fits.fit_series(series, entries)
        self.assertTrue(all(one["met"] for one in straight["checks"]), straight)
        entries[2]["seconds"] *= 1.5
        entries[4]["peak_bytes"] += 17 * MIB
        bent = fits.fit_series(series, entries)
        self.assertEqual(max(bent["deviations"], key=lambda name: abs(bent["deviations"][name])), "r2")
        met = {one["what"]: one["met"] for one in bent["checks"]}
        self.assertFalse(met["deviation of b"])
        self.assertFalse(met["spread of peak memory"])

    def test_bytes_count_as_often_as_they_are_read(self):
        entries = [entry_of(f"r{i}", x, 0.1 + 2e-9 * x) for i, x in enumerate((1e9, 2e9, 12e9))]
        entries[2]["bytes_in"] = 4e9
        fit = fits.fit_series(rows.Series("fine-tunes", deviation=0.10), entries)
        self.assertTrue(fit["checks"][0]["met"], fit)

    def test_one_measured_row_is_no_line(self):
        entries = [entry_of("a", 1e9, 1.0), {"name": "b", "skipped": "needs 40 GB of disk"}]
        self.assertIn("skipped", fits.fit_series(rows.SERIES[0], entries))


class Report(BenchTest):
    def result(self):
        entries = [entry_of("size 1", 1e9, 1.0), entry_of("size 2", 2e9, 2.0), entry_of("many", 4e9, 3.0, finetunes=9)]
        return {
            "machine": report.machine(self.dir, ROOT), "command": "tools/bench",
            "rows": [*entries, {**entry_of("none", 1, 1), "skipped": "needs 99 GB of disk"}],
            "series": [fits.fit_series(rows.Series("size", 0.3, 0.1, 16), entries[:2]),
                       fits.fit_series(rows.Series("fine-tunes"), [entries[0], entries[2]])],
        }

    def test_says_what_was_measured_and_what_not(self):
        result = self.result()
        del result["rows"][3]["seconds"]
        result["rows"][1]["checks"][0]["met"] = False
        result["rows"][2].update(planned=True, bytes_planned=12e9)
        text = report.markdown(result)
        self.assertIn("| 1.10 | at most 1.15 |", text)
        self.assertIn("at most 1.15, **missed**", text)
        self.assertIn("skipped: needs 99 GB of disk", text)
        self.assertIn("4.0 (plan: 12.0)", text)
        self.assertIn(result["machine"]["commit"], text)
        for block in text.split("\n\n"):
            widths = {line.count("|") for line in block.splitlines() if line.startswith("|")}
            self.assertLessEqual(len(widths), 1, block)

    def test_the_plot_is_an_svg_with_every_point(self):
        result = self.result()
        del result["rows"][3]
        tree = xml.etree.ElementTree.fromstring(plot.draw(result))
        circles = [e for e in tree.iter() if e.tag.endswith("circle")]
        # per column, two points: braid and limit in time, braid in memory; and two in the legend
        self.assertEqual(len(circles), 2 * (2 + 2 + 2) + 2)
        texts = " ".join(e.text or "" for e in tree.iter() if e.tag.endswith("text"))
        for label in ("seconds", "MiB resident", "billion parameters", "number of fine-tunes", "limit"):
            self.assertIn(label, texts)
        result["series"] = []
        with self.assertRaises(ValueError):
            plot.draw(result)

    def test_ticks_stay_inside(self):
        for highest in (0.013, 0.9, 1.0, 7.3, 100, 4321):
            ticks = plot.nice_ticks(highest)
            self.assertLessEqual(ticks[-1], highest * (1 + 1e-9))
            self.assertGreaterEqual(len(ticks), 3)
            self.assertLessEqual(len(ticks), 8)


class Machine(BenchTest):
    def test_states_of_the_page_cache(self):
        path = self.file("data", 8 * MIB)
        try:
            self.assertLess(page_cache.enter_state("cold", [path]), 0.01)
        except Skipped as skipped:
            self.skipTest(str(skipped))
        self.assertGreater(page_cache.enter_state("warm", [path]), 0.99)
        self.assertLess(page_cache.enter_state("cold", [path]), 0.01)

    def test_a_cgroup_kills_what_exceeds_it_and_is_removed(self):
        try:
            with MemoryCgroup(32 * MIB) as group:
                path = group.path
                run_measured(["true"], group.enter)
                with self.assertRaises(Failed):
                    run_measured([sys.executable, "-c", "b'x' * (256 << 20)"], group.enter)
        except Skipped as skipped:
            self.skipTest(str(skipped))
        self.assertFalse(path.exists())

    def test_what_a_program_cost(self):
        run = run_measured([sys.executable, "-c", "b = b'x' * (200 << 20); print(len(b))"])
        self.assertEqual(int(run.output), 200 << 20)
        self.assertGreater(run.peak_bytes, 200 << 20)
        self.assertLess(run.peak_bytes, 400 << 20)
        with self.assertRaisesRegex(Failed, "exit 3"):
            run_measured([sys.executable, "-c", "exit(3)"])

    def test_families_that_no_row_needs_make_room(self):
        keeper = families.Families(self.dir, BRAID, lambda text: None)
        for name in ("needed-bf16", "spare-bf16", "someone-elses"):
            (self.dir / name).mkdir()
            if name != "someone-elses":
                (self.dir / name / families.MARK).touch()
        with self.assertRaisesRegex(Skipped, "needs [0-9]+ GB of disk"):
            keeper.need_space(1e18, [rows.Family("needed", 1, 1)])
        self.assertEqual({p.name for p in self.dir.iterdir()}, {"needed-bf16", "someone-elses"})

    def test_a_family_that_someone_else_made_is_left_alone(self):
        keeper = families.Families(self.dir, BRAID, lambda text: None)
        (self.dir / "tiny-bf16").mkdir()
        with self.assertRaisesRegex(Failed, "not a family of the bench"):
            keeper.obtain(rows.Family("tiny", 2, 1e5), [])
        (self.dir / "tiny-bf16" / families.MARK).touch()  # as a run leaves it that was stopped
        self.assertEqual(len(keeper.obtain(rows.Family("tiny", 2, 1e5), [])), 3)
        self.assertEqual(len(keeper.obtain(rows.Family("tiny", 3, 1e5), [])), 4)


class Limits(BenchTest):
    def setUp(self):
        super().setUp()
        if not LIMIT.exists():
            self.skipTest("braid-limit is not built")

    def run_limit(self, *arguments):
        command = [LIMIT, "--output", self.dir / "out", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads(done.stdout)

    def test_reads_and_writes_as_many_bytes_as_asked(self):
        a, b = self.file("a", 3 * MIB + 17), self.file("b", 5)
        once = self.run_limit("--bytes", 4097, a, b)
        self.assertEqual((once["bytes_read"], once["bytes_written"]), (3 * MIB + 22, 4097))
        self.assertEqual((self.dir / "out").stat().st_size, 4097)
        for method in ("mapped", "direct"):
            with self.subTest(method):
                try:
                    whole = self.run_limit("--bytes", 0, "--read", method, a, b)
                except AssertionError:
                    continue  # a file system without O_DIRECT
                self.assertEqual(whole["sum"], once["sum"])
                twice = self.run_limit("--bytes", 0, "--read", method, "--read-bytes", 2 * once["bytes_read"], a, b)
                self.assertEqual(twice["bytes_read"], 2 * once["bytes_read"])
                self.assertEqual(twice["sum"], 2 * once["sum"] % (1 << 64))
                part = self.run_limit("--bytes", 0, "--read", method, "--read-bytes", MIB, a, b)
                self.assertEqual(part["bytes_read"], MIB)

    def test_the_best_of_all_turns_counts(self):
        limit = Limit(LIMIT, self.dir / "limit.bin", [self.file("a", MIB)], "warm", MIB)
        for _ in range(2):
            limit.turn(lambda text: None)
        self.assertEqual(limit.best["seconds"], min(s for runs in limit.all_seconds.values() for s in runs))
        self.assertEqual((limit.best["bytes_read"], limit.best["bytes_written"]), (MIB, MIB))
        self.assertFalse((self.dir / "limit.bin").exists())


class Rows(BenchTest):
    def test_names_differ_and_families_suffice(self):
        for every in (rows.ROWS, rows.QUICK_ROWS):
            self.assertEqual(len({row.name for row in every}), len(every))
            for row in every:
                if isinstance(row, rows.Row):
                    self.assertLessEqual(row.finetunes, row.family.finetunes)
                    self.assertLessEqual(set(row.series), {one.name for one in rows.SERIES})

    def test_recipes_and_sparse_checkpoints_are_what_braid_takes(self):
        models = [families.make_sparse(self.dir / f"m{i}", 50, 3) for i in range(3)]
        for method, parameters in (("ties", rows.MODEL_TIES), ("linear", {}), ("task_arithmetic", {"lambda": 0.5})):
            recipe = self.dir / "recipe.toml"
            recipe.write_text(families.recipe_text(method, "bf16", parameters, models))
            plan = json.loads(run_measured([BRAID, "plan", recipe, "--json"]).output)
            self.assertEqual(plan["tensors_merged"], 50)
            self.assertEqual(plan["method"], method)

    def test_outputs_that_are_no_merge_are_noticed(self):
        write_family(self.dir, ("base", "a", "b"))
        check = outputs.OutputCheck(self.dir / "base")
        check.check(self.dir / "a")
        check.check(self.dir / "a")
        with self.assertRaisesRegex(Failed, "differ"):
            check.check(self.dir / "b")
        with self.assertRaisesRegex(Failed, "copy of the base"):
            check.check(self.dir / "base")
        weights = self.dir / "a/model.safetensors"
        os.truncate(weights, weights.stat().st_size - 1)
        with self.assertRaisesRegex(Failed, "not as long"):
            check.check(self.dir / "a")


if __name__ == "__main__":
    main()
