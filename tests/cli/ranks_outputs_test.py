"""What ranks write beside plain shards: compressed shards, deltas, stages that are merged first. The bytes of one
process for any number of ranks, by files and by MPI, killed and run again; and the memory that each of them takes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

from mpi_test import LAUNCH, MpiTest
from ranks_test import SHAPES, RankTest, recipe_for
from support import (
    BRAID,
    MIB,
    SEED,
    USAGE,
    main,
    random_tensors,
    read_bytes,
    synth,
    tree_of,
    write_model,
    write_text,
)

SHARDS = ("--shard-size", "700kB")
MODEL = "[[stages.models]]\n"
# Two stages are of whole models. Of what they merge the last leaves something out: they are merged first. Or it takes
# all of it, and they are computed anew, before it finds thresholds of each tensor, or sums. So is one that does before
# whole models are gone through.
WHOLE_STAGES = f"""
[[stages]]
name = "coder"
method = "ties"
base = "base"
parameters = {{ density = 0.3, scope = "model" }}
{MODEL}path = "a"
weight = 0.5
{MODEL}path = "b"
weight = 0.7
[[stages]]
name = "trimmed"
method = "ties"
base = "base"
parameters = {{ density = 0.5, scope = "model" }}
{MODEL}stage = "coder"
weight = 1.0
[[stages]]
"""
LAST_MODELS = f'{MODEL}stage = "trimmed"\n{MODEL}stage = "coder"\n'
LAST_TIES = 'method = "ties"\nbase = "base"\nparameters = { density = 0.6 }\n'
STAGES = WHOLE_STAGES + 'exclude = "*norm*"\n' + LAST_TIES + LAST_MODELS
ONE_TIES = f'[[stages]]\nname = "thin"\n{LAST_TIES}{MODEL}path = "a"\n'
WHOLE_TIES = LAST_TIES.replace("0.6", '0.6, scope = "model"')
STAGES_ANEW = (
    WHOLE_STAGES + LAST_TIES + LAST_MODELS,
    WHOLE_STAGES + 'method = "slerp"\nparameters = { t = 0.4 }\n' + LAST_MODELS,
    f'{ONE_TIES}[[stages]]\n{WHOLE_TIES}{MODEL}stage = "thin"\n{MODEL}path = "b"\n',
)


class OutputTest(RankTest):
    def compressed(self, name, compression):
        self.write_recipe_for(name)
        text = recipe_for(name).replace("[parameters]", f'output.compress = "{compression}"\n[parameters]')
        write_text(self.path("recipe.toml"), text)

    def killed_and_run_again(self, attempts, numbers, wanted, *options):
        """One of several ranks is killed when a file like one of `wanted` is there; then another number of them runs."""
        whole = self.one_process(*options)
        midway = 0
        for attempt in range(attempts):
            of, moment = self.rng.choice(numbers), self.rng.choice(wanted)
            processes = [self.start_rank(rank, of, *options) for rank in range(of)]
            victim = self.rng.choice(processes)
            self.wait_for(moment, victim)
            victim.kill()
            for process in processes:
                _, err = process.communicate(timeout=120)
                if process is not victim:
                    self.assertEqual(process.returncode, 0, err)
            if not os.path.exists(self.path("out")):
                midway += 1
                other = self.rng.choice([n for n in (1, 2, 3, 4) if n != of])
                for rank in range(other):
                    self.assert_ok(self.rank(rank, other, *options))
            elif os.path.exists(self.path("out.partial")):  # it died between its last two steps
                self.assert_ok(self.rank(0, 1, *options))
            self.assert_like(whole, label=f"attempt {attempt}: {of} ranks, killed at {moment}")
            shutil.rmtree(self.path("out"))
        self.assertGreater(midway, 0, "no kill hit the middle of a merge: this test proves nothing")


class Compressed(OutputTest):
    def test_same_bytes(self):
        for name, compression, ranks in (
            ("ties", "zstd", (1, 2, 3, 4)),
            ("ties model", "planes", (2, 3)),
            ("breadcrumbs lines", "zstd", (3,)),
        ):
            with self.subTest(f"{name}, {compression}"):
                self.compressed(name, compression)
                whole = self.compare(*SHARDS, ranks=ranks)
                suffix = {"zstd": ".zst", "planes": ".planes.zst"}[compression]
                self.assertGreater(sum(file.endswith(suffix) for file in whole), 3, whole)

    def test_little_memory(self):
        self.compressed("ties model", "zstd")
        self.compare(*SHARDS, "--memory", "48MiB", "--threads", "1", ranks=(2,))

    def test_one_file(self):
        self.compressed("ties", "zstd")
        self.assert_ok(self.merge(out="alone.safetensors.zst"))
        for ranks in ((0, 1), (1, 0)):  # the one that compresses it comes last, or publishes before the other comes
            first = self.assert_ok(self.rank(ranks[0], 2, "--json", out="out.safetensors.zst"))
            second = self.assert_ok(self.rank(ranks[1], 2, "--json", out="out.safetensors.zst"))
            self.assertIn("1 of 2 ranks has nothing to do: one file is compressed by one rank", first.stderr)
            self.assertEqual(sum(told.json()["rank"]["published"] for told in (first, second)), 1)
            self.assertEqual(
                read_bytes(self.path("alone.safetensors.zst")), read_bytes(self.path("out.safetensors.zst"))
            )
            os.unlink(self.path("out.safetensors.zst"))

    def test_more_ranks_than_shards(self):
        self.compressed("ties", "zstd")
        whole = self.one_process("--shard-size", "3MB")
        planned = self.assert_ok(self.run_braid("plan", "recipe.toml", "--of", "4", "--shard-size", "3MB")).stdout
        idle = re.search(r"\d of 4 ranks ha(s|ve) nothing to do: the output has [23] shards.*--shard-size 1MB", planned)
        self.assertTrue(idle, planned)
        for rank in range(4):
            result = self.assert_ok(self.rank(rank, 4, "--shard-size", "3MB"))
            self.assertIn("nothing to do", result.stderr)
        self.assert_like(whole)

    def test_killed_and_run_again_with_another_number(self):
        self.compressed("ties", "zstd")
        # A shard on its way; one that is there.
        self.killed_and_run_again(8, (1, 2, 3), (r"\.zst\.", r"units-", r"\.zst$"), *SHARDS)

    def test_what_a_killed_rank_has_left_does_not_stay(self):
        self.compressed("ties", "zstd")
        self.assert_ok(self.rank(1, 2, *SHARDS))
        place = next(os.path.dirname(file) for file in self.unpublished() if file.endswith(".zst"))
        mine = next(f"model-{i:05}-of-" for i in range(1, 99) if not any(f"model-{i:05}-of-" in f for f in os.listdir(place)))
        shards = re.search(r"-of-\d+", os.listdir(place)[0])[0]
        dead = os.path.join(place, f"{mine}{shards[4:]}.safetensors.zst.elsewhere.1.0~")
        write_text(dead, "half a shard")
        process = self.start_rank(0, 2, *SHARDS)
        while process.poll() is None and os.path.exists(dead):
            time.sleep(0.001)
        self.assertFalse(os.path.exists(dead))
        process.communicate(timeout=60)
        self.assertEqual(process.returncode, 0)

    def test_other_compression(self):
        self.compressed("ties", "zstd")
        self.assert_ok(self.rank(0, 2, *SHARDS))
        self.compressed("ties", "planes")
        self.assert_fails(self.rank(1, 2, *SHARDS), USAGE, "ranks of another merge")


class Deltas(OutputTest):
    def test_same_bytes(self):
        for more in ('output = "delta"\n', 'output = { content = "delta", compress = "planes" }\n'):
            write_text(self.path("recipe.toml"), more + recipe_for("ties model"))
            self.compare(*SHARDS, ranks=(1, 3))

    def test_one_file(self):
        write_text(self.path("recipe.toml"), 'output = "delta"\n' + recipe_for("ties"))
        self.assert_ok(self.merge(out="alone.safetensors"))
        for rank in (1, 0):
            self.assert_ok(self.rank(rank, 2, out="out.safetensors"))
        self.assertEqual(read_bytes(self.path("alone.safetensors")), read_bytes(self.path("out.safetensors")))


class Stages(OutputTest):
    def setUp(self):
        super().setUp()
        write_text(self.path("recipe.toml"), STAGES)

    def test_same_bytes(self):
        self.assertIn("is merged first", self.assert_ok(self.run_braid("plan", "recipe.toml")).stdout)
        self.compare()
        self.compare("--compress", "zstd", *SHARDS, ranks=(3,))

    def test_computed_anew(self):
        for text in STAGES_ANEW:
            write_text(self.path("recipe.toml"), text)
            planned = self.assert_ok(self.run_braid("plan", "recipe.toml")).stdout
            self.assertIn("is computed anew", planned)
            self.assertNotIn("is merged first", planned)
            self.compare()

    def test_what_is_found_of_the_model_is_found_once(self):
        """... by each rank, and not for each part of what it merges."""
        for name in ("base", "a", "b"):
            os.unlink(self.path(name))
        synth(self.dir, "small", "--names", "a,b")
        middle = f'[[stages]]\nname = "thick"\n{WHOLE_TIES}{MODEL}stage = "thin"\n{MODEL}path = "b"\n'
        last = f'[[stages]]\n{LAST_TIES}{MODEL}stage = "thick"\n{MODEL}path = "a"\n'
        write_text(self.path("recipe.toml"), ONE_TIES + middle + last)
        self.assertNotIn("is merged first", self.assert_ok(self.run_braid("plan", "recipe.toml")).stdout)
        alone = self.assert_ok(self.merge("--json", out="alone"))
        self.assert_ok(self.rank(0, 2))
        later = self.assert_ok(self.rank(1, 2, "--json"))
        self.assertLess(later.json()["bytes_read"], alone.json()["bytes_read"])

    def test_killed_and_run_again_with_another_number(self):
        moments = (r"stage-1/units-", r"stage-1/stage.safetensors", r"stage-1/part-", r"ranks-\w+/units-")
        self.killed_and_run_again(6, (1, 2, 3), moments)

    def test_what_is_done_is_not_done_again(self):
        self.assert_ok(self.rank(0, 2))
        marks = [file for file in self.unpublished() if re.search(r"stage-\d/units-", file)]
        self.assertTrue(marks)
        times = {file: os.stat(file).st_mtime_ns for file in marks}
        self.assert_ok(self.rank(0, 2))
        for file, when in times.items():
            self.assertEqual(os.stat(file).st_mtime_ns, when)
        self.assert_ok(self.rank(1, 2))
        self.assertFalse(os.path.exists(self.path("out.partial")))

    def test_a_result_that_is_gone(self):
        whole = self.one_process()
        self.assert_ok(self.rank(0, 2))
        os.unlink(next(file for file in self.unpublished() if file.endswith("stage.safetensors")))
        self.assert_ok(self.rank(1, 2))
        self.assert_like(whole)


class Streams(OutputTest):
    def test_refused(self):
        write_model(self.path("one"), random_tensors(SEED, SHAPES))
        write_text(self.path("recipe.toml"), recipe_for("ties").replace('"a"', '"-"'))
        with open(self.path("one", "model.safetensors"), "rb") as stream:
            result = self.rank(0, 2, stdin=stream)
            self.assertEqual(os.lseek(stream.fileno(), 0, os.SEEK_CUR), 0, "nothing of it was read")
        self.assert_fails(result, USAGE, "recipe.toml:", "each of several ranks", "save it to a file")
        os.mkfifo(self.path("fifo"))
        write_text(self.path("recipe.toml"), STAGES.replace('"a"', '"fifo"', 1))
        self.assert_fails(self.rank(0, 2), USAGE, "recipe.toml:", "fifo: a stream comes once")
        subprocess.run(["zstd", "-q", self.path("one", "model.safetensors")], check=True)
        write_text(self.path("recipe.toml"), recipe_for("ties").replace('"a"', '"one/model.safetensors.zst"'))
        self.assert_fails(self.rank(0, 2), USAGE, "model.safetensors.zst", "without a seek table", "decompress it")
        self.assert_fails(self.rank(0, 2, out="-"), USAGE, "one stream", "name a directory")
        self.assert_nothing_written()


class Slurm(OutputTest, MpiTest):
    """configs/ranks.slurm, with Slurm's variables and an srun of our own."""

    SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "configs", "ranks.slurm")

    def job(self, **variables):
        fixed = {"BRAID": BRAID, "RECIPE": "recipe.toml", "OUT": "out", "MEMORY": "256MiB", "SLURM_CPUS_PER_TASK": "1"}
        done = subprocess.run(
            ["bash", self.SCRIPT], cwd=self.dir, env={**os.environ, **fixed, **variables}, capture_output=True, text=True
        )
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_array(self):
        self.compressed("ties", "zstd")
        whole = self.one_process(*SHARDS)
        for task in ("2", "0", "1"):
            self.job(SLURM_ARRAY_TASK_ID=task, SLURM_ARRAY_TASK_COUNT="3", SHARD_SIZE="700kB")
        self.assert_like(whole)

    def test_step(self):
        self.write_recipe_for("ties model")
        whole = self.one_process()
        os.mkdir(self.path("bin"))
        write_text(
            self.path("bin", "srun"),
            "#!/bin/sh\n[ $SRUN_CPUS_PER_TASK = 1 ] || exit 1\nwhile [ ${1#--} != $1 ]; do shift; done\n"
            f"exec mpirun -n 2 {' '.join(LAUNCH)} \"$@\"\n",
        )
        os.chmod(self.path("bin", "srun"), 0o755)
        self.job(PATH=self.path("bin") + ":" + os.environ["PATH"])
        self.assert_like(whole)
        shutil.rmtree(self.path("out"))
        self.job(SRUN=f"mpirun -n 2 {' '.join(LAUNCH)}")
        self.assert_like(whole)


class Together(OutputTest, MpiTest):
    def test_a_shard_that_is_gone(self):
        for compression in ("none", "zstd"):
            self.compressed("ties model", compression)
            whole = self.one_process(*SHARDS)
            self.assert_ok(self.rank(0, 2, *SHARDS))
            os.unlink(self.rng.choice([file for file in self.unpublished() if ".safetensors" in file]))
            code, out, err = self.mpi(3, *SHARDS)
            self.assertEqual(code, 0, err)
            self.assertEqual(err.count("and is gone"), 1, err)
            self.assert_like(whole)
            shutil.rmtree(self.path("out"))

    def same_bytes(self, *options, ranks=(1, 2, 3, 4)):
        whole = self.one_process(*options)
        for of in ranks:
            with self.subTest(f"{of} ranks"):
                code, out, err = self.mpi(of, *options)
                self.assertEqual(code, 0, err)
                self.assertEqual(out.count("output: out"), 1, out)
                self.assert_like(whole)
                shutil.rmtree(self.path("out"))

    def test_compressed(self):
        for name, compression in (("ties", "planes"), ("ties model", "zstd")):
            self.compressed(name, compression)
            self.same_bytes(*SHARDS)

    def test_more_ranks_than_shards(self):
        self.compressed("ties model", "zstd")
        code, out, err = self.mpi(4, "--shard-size", "3MB")
        self.assertEqual(code, 0, err)
        self.assertEqual(err.count("nothing to do"), 1, err)

    def test_delta(self):
        write_text(self.path("recipe.toml"), 'output = "delta"\n' + recipe_for("ties"))
        self.same_bytes(*SHARDS, ranks=(3,))

    def test_stages(self):
        for text in (STAGES, STAGES_ANEW[0], STAGES_ANEW[2]):
            write_text(self.path("recipe.toml"), text)
            self.same_bytes()

    def test_killed_and_run_again(self):
        for what in ("compressed", "stages"):
            if what == "stages":
                write_text(self.path("recipe.toml"), STAGES)
            else:
                self.compressed("ties model", "zstd")
            options = SHARDS if what == "compressed" else ()
            whole = self.one_process(*options)
            for attempt in range(3):
                wanted = r"\.zst\.|units-" if what == "compressed" else self.rng.choice((r"stage-1/", "units-"))
                job = self.start_mpi(3, *options)
                self.wait_for(wanted, job)
                victims = self.ranks_of(job)
                if victims:
                    os.kill(self.rng.choice(victims), signal.SIGKILL)
                job.communicate(timeout=60)
                if not os.path.exists(self.path("out")):
                    code, out, err = self.mpi(self.rng.choice((2, 4)), *options)
                    self.assertEqual(code, 0, err)
                self.assertEqual(tree_of(self.path("out")), whole, f"{what}, attempt {attempt}")
                shutil.rmtree(self.path("out"))
                shutil.rmtree(self.path("out.partial"), ignore_errors=True)


# What runs braid in place of mpirun's own child, and says what the kernel counted.
MEASURE = """import json, os, sys
pid = os.fork()
if pid == 0:
    os.execv(sys.argv[2], sys.argv[2:])
_, status, usage = os.wait4(pid, 0)
with open(f"{sys.argv[1]}.{pid}", "w") as file:
    json.dump(usage.ru_maxrss * 1024, file)
sys.exit(os.waitstatus_to_exitcode(status))
"""


class Memory(MpiTest):
    """Each rank keeps the promise of --memory + 64 MiB."""

    BUDGET = 48

    def setUp(self):
        super().setUp()
        for name in ("base", "a", "b"):
            os.unlink(self.path(name))
        synth(self.path("family"), "llama-70m", "--finetunes", "2")
        self.models = sorted(os.listdir(self.path("family")))

    def write(self, scope, compress):
        text = f'method = "ties"\nbase = "family/base"\noutput.compress = "{compress}"\n'
        text += f'[parameters]\ndensity = 0.3\nscope = "{scope}"\n'
        text += "".join(f'[[models]]\npath = "family/{m}"\nweight = 0.5\n' for m in self.models if m != "base")
        write_text(self.path("recipe.toml"), text)

    def assert_within(self, peaks, label):
        print(f"  {label}, --memory {self.BUDGET}MiB: MiB {[round(peak / MIB) for peak in peaks]}", flush=True)
        for peak in peaks:
            self.assertLessEqual(peak, (self.BUDGET + 64) * MIB, label)

    def test_by_files_and_by_mpi(self):
        write_text(self.path("measure.py"), MEASURE)
        options = ("--memory", f"{self.BUDGET}MiB", "--threads", "2", "--shard-size", "30MB", "--quiet")
        for scope in ("tensor", "model"):
            for compress in ("none", "zstd"):
                self.write(scope, compress)
                label, peaks = f"{scope} scope, compress {compress}", []
                for rank in range(3):
                    result, peak = self.run_measured(
                        "merge", "recipe.toml", "out", "--rank", str(rank), "--of", "3", *options
                    )
                    self.assert_ok(result)
                    peaks.append(max(peak["VmHWM"], peak["ru_maxrss"]))
                self.assert_within(peaks, f"{label}, by files")
                whole = tree_of(self.path("out"))
                shutil.rmtree(self.path("out"))
                code, out, err = self.mpi(3, *options, program=(sys.executable, "measure.py", self.path("peak"), BRAID))
                self.assertEqual(code, 0, err)
                self.assert_like(whole)
                shutil.rmtree(self.path("out"))
                peaks = []
                for file in os.listdir(self.dir):
                    if file.startswith("peak."):
                        with open(self.path(file)) as f:
                            peaks.append(json.load(f))
                        os.unlink(self.path(file))
                self.assertEqual(len(peaks), 3)
                self.assert_within(peaks, f"{label}, by MPI")


if __name__ == "__main__":
    main()
