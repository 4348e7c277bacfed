"""What the tests of the command line share: small models made by hand, a runner, and what must hold after it.

The program under test is named by the environment variable BRAID; ctest sets it. By hand, from the root:

    BRAID=build/release/braid python3 tests/cli/exit_codes_test.py
"""

import hashlib
import json
import os
import random
import shutil
import struct
import subprocess
import tempfile
import time
import unittest

BRAID = os.path.abspath(os.environ.get("BRAID", "build/release/braid"))
SEED = int(os.environ.get("BRAID_TEST_SEED", random.SystemRandom().randrange(1 << 32)))
MIB = 1 << 20

USAGE, BAD_INPUT, CHANGED, IO, MEMORY, INCOMPATIBLE = 2, 3, 4, 5, 6, 7
CODE_NAMES = {
    USAGE: "usage",
    BAD_INPUT: "bad_input",
    CHANGED: "input_changed",
    IO: "io",
    MEMORY: "memory",
    INCOMPATIBLE: "incompatible",
    130: "interrupted",
    143: "interrupted",
}

ELEMENT_BYTES = {"BF16": 2, "F16": 2, "F32": 4, "F8_E4M3": 1, "I64": 8}
# High bytes that keep random lanes finite and near 0.01, of either sign.
_SIGN = bytes(0xBC if b & 1 else 0x3C for b in range(256))
_LOW = bytes(b & 0x7F for b in range(256))  # F16 keeps part of its exponent in the second byte

TINY_SHAPES = {
    "model.embed_tokens.weight": [32, 8],
    "model.layers.0.mlp.up_proj.weight": [16, 8],
    "model.layers.0.input_layernorm.weight": [8],
    "model.layers.1.mlp.up_proj.weight": [16, 8],
    "model.norm.weight": [8],
}


# --- models made by hand ----------------------------------------------------------------------------------


def random_lanes(rng, elements, dtype):
    """The bytes of `elements` finite floating-point values."""
    size = ELEMENT_BYTES[dtype]
    data = bytearray(rng.randbytes(elements * size))
    data[size - 1 :: size] = data[size - 1 :: size].translate(_SIGN)
    if dtype == "F16":
        data[0::2] = data[0::2].translate(_LOW)
    return bytes(data)


def random_tensors(seed, shapes=None, dtype="BF16"):
    """name -> (dtype, shape, bytes)"""
    rng, tensors = random.Random(seed), {}
    for name, shape in (shapes or TINY_SHAPES).items():
        elements = 1
        for extent in shape:
            elements *= extent
        tensors[name] = (dtype, shape, random_lanes(rng, elements, dtype))
    return tensors


def header_of(tensors):
    header, at = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    return header


def write_safetensors(path, tensors, header=None):
    text = json.dumps(header if header is not None else header_of(tensors)).encode()
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for _, _, data in tensors.values():
            f.write(data)


def write_text(path, text):
    with open(path, "w", encoding="utf-8") as f:
        f.write(text)


def read_text(path):
    with open(path, encoding="utf-8") as f:
        return f.read()


def read_bytes(path):
    with open(path, "rb") as f:
        return f.read()


def write_model(directory, tensors, shards=1, config=None):
    os.makedirs(directory)
    write_text(
        os.path.join(directory, "config.json"),
        json.dumps(
            config
            or {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16"}
        ),
    )
    if shards == 1:
        write_safetensors(os.path.join(directory, "model.safetensors"), tensors)
        return
    names, weight_map = list(tensors), {}
    for s in range(shards):
        file = f"model-{s + 1:05}-of-{shards:05}.safetensors"
        mine = names[s * len(names) // shards : (s + 1) * len(names) // shards]
        write_safetensors(os.path.join(directory, file), {n: tensors[n] for n in mine})
        weight_map.update({n: file for n in mine})
    write_text(
        os.path.join(directory, "model.safetensors.index.json"),
        json.dumps({"metadata": {}, "weight_map": weight_map}),
    )


def write_family(directory, names=("base", "a", "b"), shapes=None, dtype="BF16", shards=1):
    for i, name in enumerate(names):
        write_model(os.path.join(directory, name), random_tensors(i + 1, shapes, dtype), shards)


def recipe(models=("a", "b"), base="base", method="ties", density=0.5, scope="tensor", more=""):
    """A recipe in TOML for models of write_family."""
    lines = [f'method = "{method}"']
    if base:
        lines.append(f'base = "{base}"')
    lines.append(more)
    if method == "ties":
        lines += ["[parameters]", f"density = {density}", f'scope = "{scope}"']
    for model in models:
        lines += ["[[models]]", f"path = {json.dumps(model)}", "weight = 0.5"]
    return "\n".join(lines) + "\n"


# The same for mergekit, with the defaults of recipe().
MERGEKIT_RECIPE = """merge_method: ties
base_model: base
models: [{model: a}, {model: b}]
parameters: {weight: 0.5, density: 0.5}
"""


# --- what came out ----------------------------------------------------------------------------------------


def read_weights(out):
    """tensor name -> (dtype, shape, SHA-256 of its bytes), of a directory or a file."""
    files = (
        [out]
        if os.path.isfile(out)
        else [os.path.join(out, f) for f in sorted(os.listdir(out)) if f.endswith(".safetensors")]
    )
    weights = {}
    for path in files:
        with open(path, "rb") as f:
            size = struct.unpack("<Q", f.read(8))[0]
            header = json.loads(f.read(size))
            for name, info in header.items():
                if name == "__metadata__":
                    continue
                begin, end = info["data_offsets"]
                f.seek(8 + size + begin)
                weights[name] = (
                    info["dtype"],
                    info["shape"],
                    hashlib.sha256(f.read(end - begin)).hexdigest(),
                )
    return weights


def tree_of(directory):
    """relative path -> SHA-256 of every file below a directory."""
    tree = {}
    for root, _, files in os.walk(directory):
        for name in files:
            path = os.path.join(root, name)
            with open(path, "rb") as f:
                tree[os.path.relpath(path, directory)] = hashlib.sha256(f.read()).hexdigest()
    return tree


# --- running ----------------------------------------------------------------------------------------------


class Result:
    def __init__(self, code, stdout, stderr):
        self.code, self.stdout, self.stderr = code, stdout, stderr

    def json(self):
        return json.loads(self.stdout)

    def __str__(self):
        return f"exit {self.code}\nstdout: {self.stdout}\nstderr: {self.stderr}"


def synth(directory, architecture, *arguments):
    subprocess.run(
        [BRAID, "synth", architecture, directory, *arguments], check=True, stdout=subprocess.DEVNULL
    )


def resident(pid):
    """The fields of /proc/PID/status that speak of resident memory, in bytes; {} when the process is gone."""
    fields = {}
    try:
        with open(f"/proc/{pid}/status") as f:
            for line in f:
                key, _, value = line.partition(":")
                if key in ("VmHWM", "VmRSS", "RssAnon", "RssFile", "RssShmem"):
                    fields[key] = int(value.split()[0]) * 1024
    except (FileNotFoundError, ProcessLookupError):
        pass
    return fields


class CliTest(unittest.TestCase):
    """A test in an empty directory of its own, which is also the current directory of what it runs."""

    def setUp(self):
        self.dir = tempfile.mkdtemp(prefix="braid-cli-")
        self.addCleanup(shutil.rmtree, self.dir, ignore_errors=True)

    def path(self, *parts):
        return os.path.join(self.dir, *parts)

    def start(self, *arguments, env=None, cwd=None, prefix=(), **options):
        options = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            **options,
        }
        return subprocess.Popen(
            [*prefix, BRAID, *arguments], cwd=cwd or self.dir, env={**os.environ, **(env or {})}, **options
        )

    def run_braid(self, *arguments, timeout=120, **options):
        process = self.start(*arguments, **options)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            self.fail(f"braid {' '.join(arguments)} hangs")
        return Result(
            process.returncode,
            (out or b"").decode("utf-8", "replace"),
            (err or b"").decode("utf-8", "replace"),
        )

    def merge(self, *options, recipe_file="recipe.toml", out="out", **run_options):
        return self.run_braid("merge", recipe_file, out, *options, **run_options)

    def write_recipe(self, *arguments, file="recipe.toml", **options):
        write_text(self.path(file), recipe(*arguments, **options))

    def assert_ok(self, result):
        self.assertEqual(result.code, 0, str(result))
        return result

    def assert_nothing_written(self, out="out"):
        for path in (out, out + ".partial", out + ".replaced"):
            self.assertFalse(os.path.lexists(self.path(path)), path)

    def assert_fails(self, result, code, *fragments):
        """The exit code, and one line of error that holds every fragment."""
        self.assertEqual(result.code, code, str(result))
        errors = [line for line in result.stderr.splitlines() if line.startswith("braid: error: ")]
        self.assertEqual(len(errors), 1, str(result))
        for fragment in fragments:
            self.assertIn(fragment, errors[0])
        self.assertFalse([c for c in result.stderr if ord(c) < 32 and c != "\n"], repr(result.stderr))

    def assert_merge_fails(
        self,
        code,
        *fragments,
        options=(),
        recipe_file="recipe.toml",
        out="out",
        keeps_out=False,
        **run_options,
    ):
        """Fails with and without --json, leaves nothing, and says the same in both."""
        plain = self.merge(*options, recipe_file=recipe_file, out=out, **run_options)
        self.assert_fails(plain, code, *fragments)
        self.assertEqual(plain.stdout, "", "stdout carries results only")
        if not keeps_out:
            self.assert_nothing_written(out)
        result = self.merge(*options, "--json", recipe_file=recipe_file, out=out, **run_options)
        self.assert_fails(result, code, *fragments)
        self.assertEqual(len(result.stdout.splitlines()), 1, str(result))
        told = result.json()
        self.assertEqual((told["status"], told["code"]), ("error", CODE_NAMES[code]))
        self.assertLessEqual(set(told), {"status", "code", "message", "path", "tensor"})
        self.assertIn(told["message"], result.stderr)
        if not keeps_out:
            self.assert_nothing_written(out)
        return told

    def run_measured(self, *arguments, **options):
        """Runs to the end while asking the kernel for resident memory. Result, and peaks in bytes."""
        process = self.start(*arguments, **options)
        peaks = {}
        while True:
            for key, value in resident(process.pid).items():
                peaks[key] = max(peaks.get(key, 0), value)
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            time.sleep(0.002)
        process.returncode = os.waitstatus_to_exitcode(status)
        out, err = process.communicate()
        peaks["ru_maxrss"] = usage.ru_maxrss * 1024
        return Result(process.returncode, (out or b"").decode(), err.decode()), peaks


def main():
    print(f"seed {SEED} (set BRAID_TEST_SEED to repeat)", flush=True)
    unittest.main(verbosity=2)
