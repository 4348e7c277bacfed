"""mpirun -n N braid merge: the bytes of one process; a failure of one rank is the end of all, told once; killed ranks,
and the job run again with another number; ranks in two network namespaces.

Skipped, loudly, without OpenMPI's mpirun; the namespaces where they are not permitted."""

import os
import random
import re
import shutil
import signal
import subprocess
import time
import unittest

from ranks_test import SHAPES, RankTest
from support import BRAID, SEED, USAGE, main, random_tensors, read_bytes, write_model, write_text

MPIRUN = shutil.which("mpirun")
NOT_HERE = "SKIPPED: there is no mpirun here, so nothing is known of merges by MPI"
# Ranks of one machine, more than it has cores.
LAUNCH = ["--oversubscribe", "--allow-run-as-root"]


class MpiTest(RankTest):
    @classmethod
    def setUpClass(cls):
        if MPIRUN is None:
            print(NOT_HERE, flush=True)
            raise unittest.SkipTest(NOT_HERE)
        super().setUpClass()

    def start_mpi(self, ranks, *options, out="out", launch=(), program=(BRAID,)):
        return subprocess.Popen(
            [MPIRUN, "-n", str(ranks), *LAUNCH, *launch, *program, "merge", "recipe.toml", out, *options],
            cwd=self.dir,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def mpi(self, ranks, *options, **more):
        process = self.start_mpi(ranks, *options, **more)
        try:
            out, err = process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            self.fail("mpirun hangs")
        return process.returncode, out, err

    def ranks_of(self, mpirun):
        """The processes that an mpirun has started."""
        found = subprocess.run(
            ["ps", "--no-headers", "-o", "pid", "--ppid", str(mpirun.pid)], capture_output=True, text=True
        )
        return [int(pid) for pid in found.stdout.split()]


class Together(MpiTest):
    def test_same_bytes(self):
        for name in ("ties", "ties model", "ties lines", "breadcrumbs", "nuslerp"):
            self.write_recipe_for(name)
            whole = self.one_process()
            for ranks in (1, 2, 3, 4):
                with self.subTest(f"{name}, {ranks} ranks"):
                    code, out, err = self.mpi(ranks)
                    self.assertEqual(code, 0, err)
                    self.assertEqual(out.count("output: out"), 1, out)
                    self.assert_like(whole)
                    shutil.rmtree(self.path("out"))

    def test_single_file_and_json(self):
        self.write_recipe_for("ties")
        self.assert_ok(self.merge(out="alone.safetensors"))
        code, out, err = self.mpi(3, "--json", out="out.safetensors")
        self.assertEqual(code, 0, err)
        self.assertEqual(len(out.strip().splitlines()), 1, out)
        self.assertEqual(read_bytes(self.path("alone.safetensors")), read_bytes(self.path("out.safetensors")))

    def test_an_error_is_told_once(self):
        write_text(self.path("recipe.toml"), 'method = "tiess"\n')
        code, out, err = self.mpi(3)
        self.assertEqual(code, USAGE, err)
        self.assertEqual(err.count("braid: error: "), 1, err)
        self.assert_nothing_written()

    def test_killed_and_run_again_with_another_number(self):
        self.write_recipe_for("ties model")
        whole = self.one_process()
        start = time.monotonic()
        self.assertEqual(self.mpi(3)[0], 0)
        seconds = time.monotonic() - start
        shutil.rmtree(self.path("out"))
        midway = 0
        for attempt in range(10):
            ranks = self.rng.choice((2, 3, 4))
            job = self.start_mpi(ranks)
            if attempt % 2 == 0:  # as soon as something is written: a loaded machine starts ranks at any time
                while job.poll() is None and not os.path.exists(self.path("out.partial")):
                    time.sleep(0.001)
            else:
                time.sleep(self.rng.uniform(0.2, 1) * seconds)
            victims = self.ranks_of(job)
            if victims:
                os.kill(self.rng.choice(victims), signal.SIGKILL)
            out, err = job.communicate(timeout=60)
            if job.returncode == 0:
                self.assert_like(whole)
                shutil.rmtree(self.path("out"))
                continue
            if os.path.exists(self.path("out")):  # it was complete, and a rank died at the very end
                self.assertEqual({k: v for k, v in self.tree("out").items()}, whole)
                shutil.rmtree(self.path("out"))
                shutil.rmtree(self.path("out.partial"), ignore_errors=True)
                continue
            midway += os.path.exists(self.path("out.partial"))
            again = self.rng.choice([n for n in (2, 3, 4) if n != ranks])
            if self.rng.random() < 0.3:  # or as an array job, or by one process that looks for what is left
                for rank in range(2):
                    self.assert_ok(self.rank(rank, 2))
            else:
                code, out, err = self.mpi(again)
                self.assertEqual(code, 0, err)
            self.assert_like(whole, label=f"attempt {attempt}: {ranks} ranks, then {again}")
            shutil.rmtree(self.path("out"))
        self.assertGreater(midway, 0, "no kill hit the middle of a merge: this test proves nothing")

    def test_who_is_quick_takes_more(self):
        """With one of two ranks stopped, the other does more than half of the work."""
        shapes = {f"model.layers.{i}.mlp.up_proj.weight": [64, 512] for i in range(100)}   # no cut costs much
        for i, name in enumerate(("base", "a", "b")):
            os.unlink(self.path(name))
            write_model(self.path(name), random_tensors(SEED + i, shapes))
        self.write_recipe_for("ties")
        whole = self.one_process()
        all_pieces = int(re.search(r"of (\d+) pieces", self.run_braid("plan", "recipe.toml", "--of", "2").stdout)[1])
        most = 0
        for _ in range(5):
            job = self.start_mpi(2)
            self.wait_for(r"\.safetensors$", job)   # both have met
            stopped = [pid for pid in self.ranks_of(job) if b"OMPI_COMM_WORLD_RANK=1" in self.environment(pid)]
            for pid in stopped:
                os.kill(pid, signal.SIGSTOP)
            deadline = time.monotonic() + 10   # of an attempt in which it was stopped too late, or had nothing to do
            while job.poll() is None and time.monotonic() < deadline and most <= all_pieces * 0.6:
                most = max(most, self.pieces_done())
                time.sleep(0.01)
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
            _, err = job.communicate(timeout=60)
            self.assertEqual(job.returncode, 0, err)
            self.assert_like(whole)
            shutil.rmtree(self.path("out"))
            if most > all_pieces * 0.6:
                return
        self.fail(f"at most {most} of {all_pieces} pieces were done by one of two ranks")

    def environment(self, pid):
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                return file.read()
        except (FileNotFoundError, ProcessLookupError):
            return b""

    def files_of_ranks(self):
        return [file for _, _, names in os.walk(self.path("out.partial")) for file in names]

    def pieces_done(self):
        runs = [re.fullmatch(r"units-(\d+)-(\d+)", file) for file in self.files_of_ranks()]
        return sum(int(run[2]) - int(run[1]) for run in runs if run)

    def tree(self, out):
        from support import tree_of

        return tree_of(self.path(out))


class TwoNamespaces(MpiTest):
    """Two network namespaces of this test's own, joined by a cable of their own; nothing else is touched."""

    NET = "10.77.77"

    def setUp(self):
        super().setUp()
        self.names = [f"braid-test-{os.getpid()}-{i}" for i in (0, 1)]
        cable = [f"brd{os.getpid() % 100000}v{i}" for i in (0, 1)]
        commands = [["ip", "netns", "add", name] for name in self.names]
        commands.append(
            ["ip", "link", "add", cable[0], "netns", self.names[0], "type", "veth", "peer", "name", cable[1],
             "netns", self.names[1]]
        )
        for i, name in enumerate(self.names):
            commands.append(["ip", "-n", name, "addr", "add", f"{self.NET}.{i + 1}/24", "dev", cable[i]])
            commands.append(["ip", "-n", name, "link", "set", cable[i], "up"])
            commands.append(["ip", "-n", name, "link", "set", "lo", "up"])
        self.addCleanup(self.remove_namespaces)
        for command in commands:
            try:
                done = subprocess.run(command, capture_output=True, text=True)
            except FileNotFoundError:
                self.skip("there is no ip")
            if done.returncode != 0:
                self.skip(f"{' '.join(command)}: {done.stderr.strip()}")

    def skip(self, why):
        print(f"SKIPPED: network namespaces are not permitted here ({why}), so nothing is known of ranks on two of them",
              flush=True)
        self.skipTest(why)

    def remove_namespaces(self):
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)

    def within(self, i):
        return ["ip", "netns", "exec", self.names[i]]

    def test_array_job(self):
        for name in ("ties", "ties model"):
            self.write_recipe_for(name)
            whole = self.one_process()
            ranks = [
                self.start("merge", "recipe.toml", "out", "--rank", str(i), "--of", "2", prefix=self.within(i))
                for i in (0, 1)
            ]
            for rank in ranks:
                _, err = rank.communicate(timeout=120)
                self.assertEqual(rank.returncode, 0, err)
            self.assert_like(whole)
            shutil.rmtree(self.path("out"))

    def test_mpi_over_tcp(self):
        """mpirun reaches the other namespace by an agent that takes the place of ssh; ranks talk over the cable."""
        write_text(
            self.path("agent"),
            f"#!/bin/sh\n# ssh HOST COMMAND...\nshift\nexec ip netns exec {self.names[1]} sh -c \"$*\"\n",
        )
        os.chmod(self.path("agent"), 0o755)
        write_text(self.path("hosts"), f"{self.NET}.1 slots=1\n{self.NET}.2 slots=1\n")
        network = f"{self.NET}.0/24"
        command = [
            *self.within(0), MPIRUN, "-n", "2", *LAUNCH, "--hostfile", "hosts", "--map-by", "node",
            "--mca", "plm_rsh_agent", self.path("agent"), "--mca", "btl", "tcp,self",
            "--mca", "btl_tcp_if_include", network, "--mca", "oob_tcp_if_include", network,
            BRAID, "merge", "recipe.toml", "out",
        ]
        for name in ("ties", "ties model"):
            self.write_recipe_for(name)
            whole = self.one_process()
            try:
                done = subprocess.run(command, cwd=self.dir, capture_output=True, text=True, timeout=60)
            except subprocess.TimeoutExpired as late:
                self.fail(f"mpirun hangs: {late.stdout} {late.stderr}")
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertIn("by 2 ranks", done.stdout)
            self.assert_like(whole)
            shutil.rmtree(self.path("out"))


if __name__ == "__main__":
    main()
