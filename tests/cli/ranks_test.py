"""--rank and --of: however many ranks there are, in whatever order or at once, killed and run again, the output has the
bytes of one process, and appears once."""

import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import time
import unittest

from support import (
    IO,
    MIB,
    SEED,
    USAGE,
    CliTest,
    main,
    random_tensors,
    read_bytes,
    read_text,
    recipe,
    tree_of,
    write_model,
    write_text,
)

# Tensors of every kind: cut by every number of ranks, smaller than a page, of odd sizes, and equal magnitudes in plenty
# (random_lanes has 128 of them).
SHAPES = {
    "model.embed_tokens.weight": [1500, 512],
    "model.layers.0.input_layernorm.weight": [515],
    "model.layers.0.mlp.up_proj.weight": [700, 512],
    "model.layers.0.mlp.down_proj.weight": [512, 701],
    "model.layers.1.input_layernorm.weight": [515],
    "model.layers.1.mlp.up_proj.weight": [300, 512],
    "model.norm.weight": [512],
    "lm_head.weight": [1500, 512],
}

PARAMETERS = {
    "ties": "density = 0.3",
    "ties model": 'density = 0.3\nscope = "model"',
    "della": "density = 0.5\nepsilon = 0.1",
    "breadcrumbs": "density = 0.6\ngamma = 0.05",
    "sce": "select_topk = 0.4",
}


def recipe_for(name):
    method = name.split()[0]
    text = f'method = "{method}"\nbase = "base"\n'
    if "lines" in name:
        text += "layer_scale = { beta = 0.4 }\n"
    text += f"[parameters]\n{PARAMETERS.get(name.replace(' lines', ''), '')}\n"
    return text + "".join(
        f'[[models]]\npath = "{m}"\n' + ("" if method in ("sce", "model_stock", "arcee_fusion") else f"weight = {w}\n")
        for m, w in (("a", 0.5), ("b", 0.7))[: 1 if method == "arcee_fusion" else 2]
    )


class RankTest(CliTest):
    """A family that tests share; `self.rng` is seeded."""

    @classmethod
    def setUpClass(cls):
        import tempfile

        cls.family = tempfile.mkdtemp(prefix="braid-cli-family-")
        cls.addClassCleanup(shutil.rmtree, cls.family, ignore_errors=True)
        for i, name in enumerate(("base", "a", "b")):
            write_model(os.path.join(cls.family, name), random_tensors(SEED + i, SHAPES), shards=2)
        cls.rng = random.Random(SEED)

    def setUp(self):
        super().setUp()
        for name in ("base", "a", "b"):
            os.symlink(os.path.join(self.family, name), self.path(name))

    def write_recipe_for(self, name):
        write_text(self.path("recipe.toml"), recipe_for(name))

    def one_process(self, *options, out="out"):
        """The tree of the same merge by one process."""
        shutil.rmtree(self.path("alone"), ignore_errors=True)
        os.makedirs(self.path("alone"))
        self.assert_ok(self.merge(*options, out=os.path.join("alone", out)))
        whole = tree_of(self.path("alone"))
        shutil.rmtree(self.path("alone"))
        return {os.path.relpath(path, out) if path != out else path: sum for path, sum in whole.items()}

    def start_rank(self, rank, of, *options, out="out"):
        return self.start("merge", "recipe.toml", out, "--rank", str(rank), "--of", str(of), *options)

    def rank(self, rank, of, *options, out="out", **run_options):
        return self.merge("--rank", str(rank), "--of", str(of), *options, out=out, **run_options)

    def assert_like(self, whole, out="out", label=""):
        self.assertEqual(tree_of(self.path(out)), whole, label)
        self.assertFalse(os.path.exists(self.path(out + ".partial")), label)

    def one_after_another(self, of, *options):
        ranks = list(range(of))
        self.rng.shuffle(ranks)
        for i, rank in enumerate(ranks):
            self.assertFalse(os.path.exists(self.path("out")))
            told = self.assert_ok(self.rank(rank, of, "--json", *options)).json()["rank"]
            self.assertEqual(told["published"], i + 1 == of, told)

    def at_once(self, of, *options):
        processes = [self.start_rank(rank, of, "--json", *options) for rank in range(of)]
        published = 0
        for process in processes:
            out, err = process.communicate(timeout=120)
            self.assertEqual(process.returncode, 0, err)
            published += json.loads(out)["rank"]["published"]
        self.assertEqual(published, 1)

    def compare(self, *options, ranks=(1, 2, 3, 4)):
        whole = self.one_process(*options)
        for of in ranks:
            for run in (self.one_after_another, self.at_once):
                run(of, *options)
                self.assert_like(whole, label=f"{run.__name__} {of} {options}")
                shutil.rmtree(self.path("out"))
        return whole

    def unpublished(self):
        """Files of the ranks, by their paths."""
        return [
            os.path.join(root, file) for root, _, files in os.walk(self.path("out.partial")) for file in files
        ]

    def wait_for(self, wanted, process):
        """Until a file of the ranks has a path like `wanted`, or the process has ended."""
        while process.poll() is None and not any(re.search(wanted, file) for file in self.unpublished()):
            time.sleep(0.001)


class SameBytes(RankTest):
    def test_methods(self):
        for name in ("ties", "ties model", "ties lines"):
            with self.subTest(name):
                self.write_recipe_for(name)
                self.compare()
        others = ("task_arithmetic", "nuslerp", "model_stock", "pcb", "arcee_fusion", "ramplus_tl", "breadcrumbs lines")
        for name in (*PARAMETERS, *others):
            if not name.startswith("ties"):
                with self.subTest(name):
                    self.write_recipe_for(name)
                    self.compare(ranks=(3,))

    def test_shards(self):
        self.write_recipe_for("ties")
        self.compare("--shard-size", "700kB")

    def test_little_memory(self):
        self.write_recipe_for("ties model")
        self.compare("--memory", "32MiB", "--threads", "1")

    def test_ranks_unlike_each_other(self):
        """Memory, threads and ways of reading may differ: bytes do not."""
        for name in ("ties", "ties model", "breadcrumbs"):
            self.write_recipe_for(name)
            whole = self.one_process()
            for rank, options in enumerate(
                (("--memory", "24MiB", "--threads", "1"), ("--memory", "1GiB", "--threads", "3"), ("--io", "direct"))
            ):
                self.assert_ok(self.rank(rank, 3, *options))
            self.assert_like(whole)
            shutil.rmtree(self.path("out"))

    def test_single_file(self):
        self.write_recipe_for("ties")
        self.assert_ok(self.merge(out="alone.safetensors"))
        for rank in (2, 0, 1):
            self.assert_ok(self.rank(rank, 3, out="out.safetensors"))
        self.assertEqual(read_bytes(self.path("alone.safetensors")), read_bytes(self.path("out.safetensors")))
        self.assert_ok(self.run_braid("verify", "out.safetensors"))
        self.assertFalse(os.path.exists(self.path("out.safetensors.partial")))

    def test_more_ranks_than_pieces(self):
        self.write_recipe_for("ties")
        whole = self.one_process()
        for rank in range(97):
            self.assert_ok(self.rank(rank, 97, "--quiet"))
        self.assert_like(whole)


class Failures(RankTest):
    def pieces(self):
        """Marks of pieces that are done, or None when there is no place for them."""
        for root, _, files in os.walk(self.path("out.partial")):
            if "checkpoint" in os.listdir(root):
                runs = [file.split("-")[1:] for file in files if re.fullmatch(r"units-\d+-\d+", file)]
                return sum(int(last) - int(first) for first, last in runs)
        return None

    def test_killed_and_run_again_with_another_number(self):
        self.write_recipe_for("ties")
        whole = self.one_process()
        start = time.monotonic()
        self.at_once(2)
        seconds = time.monotonic() - start
        shutil.rmtree(self.path("out"))
        midway = 0
        for attempt in range(12):
            of = self.rng.randrange(1, 5)
            processes = [self.start_rank(rank, of) for rank in range(of)]
            victim = self.rng.choice(processes)
            time.sleep(self.rng.uniform(0, seconds))
            victim.kill()
            for process in processes:
                out, err = process.communicate(timeout=120)
                if process is not victim:
                    self.assertEqual(process.returncode, 0, err)
            if os.path.exists(self.path("out")):
                if os.path.exists(self.path("out.partial")):  # it died between its last two steps
                    self.assert_ok(self.rank(0, 1))
                self.assert_like(whole, label=f"attempt {attempt}")
                shutil.rmtree(self.path("out"))
                continue
            midway += 1
            other = self.rng.choice([n for n in (1, 2, 3, 4) if n != of])
            for rank in range(other):
                self.assert_ok(self.rank(rank, other))
            self.assert_like(whole, label=f"attempt {attempt}: {of} ranks, then {other}")
            shutil.rmtree(self.path("out"))
        self.assertGreater(midway, 0, "no kill hit the middle of a merge: this test proves nothing")

    def test_what_is_done_is_not_done_again(self):
        self.write_recipe_for("ties")
        whole = self.one_process()
        self.assert_ok(self.rank(0, 2))
        done = self.pieces()
        self.assertGreater(done, 0)
        told = self.assert_ok(self.rank(0, 2, "--json")).json()["rank"]
        self.assertEqual((told["units"], told["complete"]), (0, False))
        told = self.assert_ok(self.rank(0, 1, "--json")).json()["rank"]
        self.assertEqual((told["units"], told["published"]), (told["all_units"] - done, True))
        self.assert_like(whole)
        again = self.assert_ok(self.rank(1, 2))
        self.assertIn("another rank has published", again.stdout)
        self.assert_like(whole)

    def test_interrupted(self):
        self.write_recipe_for("ties")
        process = self.start_rank(0, 1)
        process.terminate()
        process.communicate(timeout=60)
        if process.returncode != 0:
            self.assertIn(process.returncode, (143, -15))
            self.assertFalse(os.path.exists(self.path("out")))
            self.assert_ok(self.rank(0, 1))
        self.assert_ok(self.run_braid("verify", "out"))

    def test_ranks_of_different_merges(self):
        self.write_recipe_for("ties")
        self.assert_ok(self.rank(0, 2))
        self.write_recipe_for("task_arithmetic")
        self.assert_fails(self.rank(1, 2), USAGE, "out.partial", "ranks of another merge")
        self.write_recipe_for("ties")
        self.assert_fails(self.rank(1, 2, "--shard-size", "1MB"), USAGE, "ranks of another merge")
        # The same headers over other weights.
        os.unlink(self.path("b"))
        write_model(self.path("b"), random_tensors(SEED + 17, SHAPES), shards=2)
        self.assert_fails(self.rank(1, 2), USAGE, "ranks of another merge", "other sources")
        shutil.rmtree(self.path("b"))
        os.symlink(os.path.join(self.family, "b"), self.path("b"))
        self.assert_ok(self.rank(1, 2))
        self.assert_ok(self.run_braid("verify", "out"))

    def test_a_merge_alone_beside_ranks(self):
        self.write_recipe_for("ties")
        whole = self.one_process()
        self.assert_ok(self.rank(0, 2))
        result = self.assert_ok(self.merge())
        self.assertIn("removed what an interrupted merge had left", result.stderr)
        self.assert_like(whole)
        shutil.rmtree(self.path("out"))
        os.makedirs(self.path("out.partial"))
        write_text(self.path("out.partial", "model.safetensors"), "half")
        self.assert_fails(self.rank(0, 2), USAGE, "out.partial", "model.safetensors")

    def test_an_output_that_is_there(self):
        self.write_recipe_for("task_arithmetic")
        self.assert_ok(self.merge())
        self.write_recipe_for("ties")
        whole = self.one_process()
        self.assert_fails(self.rank(0, 2), USAGE, "it exists already")
        self.assertFalse(os.path.exists(self.path("out.partial")))
        old = tree_of(self.path("out"))
        self.assert_ok(self.rank(0, 2, "--force"))
        self.assertEqual(tree_of(self.path("out")), old)
        self.assert_ok(self.rank(1, 2, "--force"))
        self.assert_like(whole)

    def test_damaged_marks(self):
        self.write_recipe_for("ties")
        whole = self.one_process()
        self.assert_ok(self.rank(0, 2))
        place = self.path("out.partial", os.listdir(self.path("out.partial"))[0])
        mark = os.path.join(place, sorted(f for f in os.listdir(place) if f.startswith("units-"))[0])
        good = read_text(mark)
        for bad in ("", "{}", '{"sums": [[0]]}', '{"sums": [[99999, "00"]]}', '{"sums": [[0, "zz"]]}', good[:-5]):
            write_text(mark, bad)
            self.assert_fails(self.rank(1, 2), 3, os.path.basename(mark))
            self.assertFalse(os.path.exists(self.path("out")))
        os.unlink(mark)
        self.assert_ok(self.rank(0, 2))
        self.assert_like(whole)

    def test_command_line(self):
        write_text(self.path("recipe.toml"), recipe())
        self.assert_fails(self.merge("--rank", "0"), USAGE, "--of")
        self.assert_fails(self.merge("--of", "2"), USAGE, "--rank")
        self.assert_fails(self.rank(2, 2), USAGE, "there is no rank 2 of 2", "count from 0")
        self.assert_fails(self.rank(-1, 2), USAGE, "--rank")
        self.assert_fails(self.rank(0, 0), USAGE, "--of")
        self.assert_fails(self.rank(0, 2, "--cache", "cache"), USAGE, "--cache")
        self.assert_nothing_written()

    def test_a_shard_that_is_gone(self):
        """Whose units were marked: they are written again, by the rank whose they are."""
        self.write_recipe_for("ties")
        for options in ((), ("--shard-size", "700kB"), ("--compress", "zstd", "--shard-size", "700kB")):
            whole = self.one_process(*options)
            for again in ((0, 1), (1, 0)):  # the one that wrote it, or the other first
                self.assert_ok(self.rank(0, 2, *options))
                shards = [file for file in self.unpublished() if ".safetensors" in file]
                lost = self.rng.choice(shards)
                os.unlink(lost)
                for rank in again:
                    result = self.assert_ok(self.rank(rank, 2, *options))
                    if rank == again[0]:
                        self.assertIn(f"warning: {os.path.basename(lost)}: it was written, and is gone", result.stderr)
                        self.assertFalse(os.path.exists(self.path("out")))
                    else:
                        self.assertNotIn("warning", result.stderr)
                self.assert_like(whole, label=f"{options}, {again}, {lost}")
                shutil.rmtree(self.path("out"))

    def test_a_shard_that_is_removed_while_it_is_written(self):
        self.write_recipe_for("ties")
        whole = self.one_process("--compress", "zstd", "--shard-size", "700kB")
        lost = 0
        for _ in range(6):
            process = self.start_rank(0, 1, "--compress", "zstd", "--shard-size", "700kB")
            self.wait_for(r"\.zst$", process)
            for file in self.unpublished():
                if file.endswith(".zst") and not os.path.exists(self.path("out")):
                    try:
                        os.unlink(file)
                        lost += 1
                    except FileNotFoundError:
                        pass
                    break
            _, err = process.communicate(timeout=60)
            if process.returncode != 0:  # it went between the last look and the end
                self.assertIn(b"it is gone", err)
                self.assert_ok(self.rank(0, 1, "--compress", "zstd", "--shard-size", "700kB"))
            self.assert_like(whole)
            shutil.rmtree(self.path("out"))
        self.assertGreater(lost, 0, "nothing was removed: this test proves nothing")


class Launchers(RankTest):
    """What srun and others say of the processes that they have started."""

    def test_processes_that_cannot_talk(self):
        self.write_recipe_for("ties")
        for env in (
            {"SLURM_STEP_NUM_TASKS": "3", "SLURM_PROCID": "1", "SLURM_NTASKS": "3"},  # srun without MPI
            {"PMI_SIZE": "3", "PMI_RANK": "1"},  # a launcher that our MPI does not know, or no MPI
        ):
            result = self.merge(env=env)
            self.assert_fails(result, USAGE, f"3 processes were started together ({next(iter(env))}", "cannot talk")
            self.assert_fails(result, USAGE, "--rank $SLURM_PROCID --of $SLURM_NTASKS", f"env -u {next(iter(env))}")
            self.assert_nothing_written()

    def test_parts_that_are_given(self):
        self.write_recipe_for("ties")
        whole = self.one_process()
        for rank in (1, 0, 2):
            env = {"SLURM_STEP_NUM_TASKS": "3", "SLURM_PROCID": str(rank), "SLURM_NTASKS": "3"}
            self.assert_ok(self.rank(rank, 3, env=env))
        self.assert_like(whole)

    def test_alone(self):
        self.write_recipe_for("ties")
        for env in (
            {"SLURM_NTASKS": "4", "SLURM_PROCID": "0"},  # a batch script
            {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
            {"SLURM_STEP_NUM_TASKS": "2", "OMPI_COMM_WORLD_SIZE": "1"},  # mpirun starts its daemons by srun
        ):
            self.assert_ok(self.merge("--force", env=env))


class Turns(RankTest):
    """A rank that is done takes parts of one that is slower; not of one that nobody is at."""

    SHARDS = ("--compress", "zstd", "--shard-size", "300kB")

    def setUp(self):
        super().setUp()
        shapes = {f"model.layers.{i}.mlp.up_proj.weight": [8, 512] for i in range(800)}  # no cut costs much
        for i, name in enumerate(("base", "a", "b")):
            os.unlink(self.path(name))
            write_model(self.path(name), random_tensors(SEED + i, shapes))
        # Without statistics: a rank that is stopped while it counts keeps others waiting.
        self.write_recipe_for("task_arithmetic")

    def claims(self):
        """First units of parts that somebody has begun."""
        return [int(re.search(r"claim-(\d+)-", file)[1]) for file in self.unpublished() if "claim-" in file]

    def stopped_rank(self, rank, of, *options):
        """At its first part, unless it was too quick."""
        process = self.start_rank(rank, of, *options)
        self.wait_for(r"claim-", process)
        process.send_signal(signal.SIGSTOP)
        self.addCleanup(process.kill)
        return process

    def go_on(self, process):
        process.send_signal(signal.SIGCONT)
        _, err = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 0, err)

    def test_who_is_quick_takes_more(self):
        for options in ((), self.SHARDS):
            whole, helped = self.one_process(*options), False
            for _ in range(8):
                slow = self.stopped_rank(1, 2, *options)
                told = self.assert_ok(self.rank(0, 2, "--json", *options)).json()["rank"]
                helped = helped or (told["units"] > 0.7 * told["all_units"] and not told["complete"])
                self.go_on(slow)
                self.assert_like(whole)
                shutil.rmtree(self.path("out"))
            self.assertTrue(helped, f"{options}: rank 0 never did more than its half")

    def test_who_died_is_not_helped(self):
        whole, midway = self.one_process(), 0
        for _ in range(8):
            dead = self.stopped_rank(1, 2)
            dead.kill()
            dead.communicate()
            told = self.assert_ok(self.rank(0, 2, "--json")).json()["rank"]
            midway += not told["complete"]
            self.assertLess(told["units"], 0.6 * told["all_units"])
            self.assert_ok(self.rank(1, 2))
            self.assert_like(whole)
            shutil.rmtree(self.path("out"))
        self.assertGreater(midway, 0, "no kill hit the middle of a merge: this test proves nothing")

    def test_a_helper_that_dies(self):
        """What it had taken goes back."""
        for options in ((), self.SHARDS):
            whole, helping = self.one_process(*options), 0
            for _ in range(8):
                slow = self.stopped_rank(1, 2, *options)
                first = min(self.claims(), default=0)
                helper = self.start_rank(0, 2, *options)
                while helper.poll() is None and max(self.claims(), default=0) <= first:
                    time.sleep(0.001)
                time.sleep(self.rng.uniform(0, 0.02))
                helping += helper.poll() is None
                helper.kill()
                helper.communicate()
                self.go_on(slow)
                if not os.path.exists(self.path("out")):  # the helper had not come to the end of its own
                    self.assert_ok(self.rank(0, 2, *options))
                self.assert_like(whole)
                shutil.rmtree(self.path("out"))
            self.assertGreater(helping, 0, "no kill hit a helper: this test proves nothing")

    def test_many_at_once(self):
        self.write_recipe_for("ties")
        for options in ((), self.SHARDS):
            whole = self.one_process(*options)
            for _ in range(3):
                self.at_once(6, *options)
                self.assert_like(whole)
                shutil.rmtree(self.path("out"))


class Space(RankTest):
    """A disk that is too small is told before anything is written; what other ranks have taken is not counted again."""

    def mount(self, size):
        os.mkdir(self.path("disk"))
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", self.path("disk")]
        mounted = subprocess.run(command, capture_output=True)
        if mounted.returncode != 0:
            self.skipTest("this user may not mount a tmpfs")
        self.addCleanup(subprocess.run, ["umount", self.path("disk")])

    def test_too_small(self):
        self.mount("3m")
        self.write_recipe_for("ties")
        for options in ((), ("--shard-size", "700kB")):
            result = self.rank(1, 2, *options, out="disk/out")
            self.assert_fails(result, IO, "disk/out.partial", "the merged checkpoint needs", "has 3", "free")
            self.assert_nothing_written("disk/out")

    def test_what_others_have_taken(self):
        self.mount("5m")  # for an output of 4.8 MB, which the first of them reserves
        self.write_recipe_for("task_arithmetic")
        for options in ((), ("--shard-size", "700kB")):
            whole = self.one_process(*options)
            for rank in (2, 0, 1):
                self.assert_ok(self.rank(rank, 3, *options, out="disk/out"))
            self.assert_like(whole, out="disk/out")
            shutil.rmtree(self.path("disk", "out"))

    def test_filled_meanwhile(self):
        self.mount("6m")
        self.write_recipe_for("task_arithmetic")
        self.assert_ok(self.rank(0, 2, "--shard-size", "700kB", out="disk/out"))
        with open(self.path("disk", "other"), "wb") as other:
            other.write(bytes(2 * MIB))
        self.assert_fails(self.rank(1, 2, "--shard-size", "700kB", out="disk/out"), IO, "the merged checkpoint needs")
        self.assert_ok(self.rank(0, 2, "--shard-size", "700kB", out="disk/out"))  # which has nothing to write
        os.unlink(self.path("disk", "other"))
        self.assert_ok(self.rank(1, 2, "--shard-size", "700kB", out="disk/out"))
        self.assert_ok(self.run_braid("verify", "disk/out"))

    def test_compressed(self):
        self.mount("4m")
        self.write_recipe_for("task_arithmetic")
        for name in ("base", "a", "b"):  # that become small
            os.unlink(self.path(name))
            write_model(self.path(name), {n: ("BF16", s, bytes(2 * math.prod(s))) for n, s in SHAPES.items()})
        options = ("--shard-size", "700kB", "--compress", "planes")
        self.assertIn("may not fit", self.assert_ok(self.rank(0, 2, *options, out="disk/out")).stderr)
        self.assertNotIn("may not fit", self.assert_ok(self.rank(1, 2, *options, out="disk/out")).stderr)
        self.assert_ok(self.run_braid("verify", "disk/out"))


if __name__ == "__main__":
    main()
