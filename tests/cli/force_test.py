"""What --force replaces, what it never replaces, and that nothing is lost when it refuses."""

import os
import shutil
import subprocess

from support import (
    USAGE,
    CliTest,
    main,
    random_tensors,
    read_weights,
    tree_of,
    write_family,
    write_model,
    write_text,
)


class Force(CliTest):
    def setUp(self):
        super().setUp()
        write_family(self.dir)
        self.write_recipe()

    def make_checkpoint(self, name="out"):
        write_model(self.path(name), random_tensors(7))

    def assert_refused(self, *fragments, out="out", watch=".", **options):
        """Refused with --force, with nothing lost or added anywhere below `watch`."""
        before = tree_of(self.path(watch))
        self.assert_merge_fails(USAGE, *fragments, options=["--force"], out=out, keeps_out=True, **options)
        self.assertEqual(tree_of(self.path(watch)), before)
        self.assertFalse(os.path.exists(self.path(out + ".partial")))

    def test_replaces_a_checkpoint(self):
        self.assert_ok(self.merge(out="fresh"))
        self.make_checkpoint()
        write_text(self.path("out", "stale.safetensors"), "stale")
        self.assert_ok(self.merge("--force"))
        self.assertEqual(read_weights(self.path("out")), read_weights(self.path("fresh")))
        self.assertEqual(set(tree_of(self.path("out"))), set(tree_of(self.path("fresh"))))

    def test_replaces_an_earlier_output_and_keeps_no_stale_shard(self):
        self.assert_ok(self.merge("--shard-size", "600"))
        self.assertIn("model.safetensors.index.json", os.listdir(self.path("out")))
        many = [name for name in os.listdir(self.path("out")) if name.endswith(".safetensors")]
        self.assertGreater(len(many), 1)
        self.assert_ok(self.merge("--force"))
        self.assertEqual(
            [name for name in os.listdir(self.path("out")) if "safetensors" in name], ["model.safetensors"]
        )
        self.assert_ok(self.run_braid("verify", "out"))

    def test_replaces_a_single_file(self):
        self.assert_ok(self.merge(out="out.safetensors"))
        self.assert_merge_fails(USAGE, "--force", out="out.safetensors", keeps_out=True)
        self.assert_ok(self.merge("--force", out="out.safetensors"))
        self.assert_ok(self.run_braid("verify", "out.safetensors"))

    def test_follows_a_link_to_a_checkpoint(self):
        self.make_checkpoint("real")
        os.symlink("real", self.path("out"))
        self.assert_ok(self.merge("--force"))
        self.assertTrue(os.path.islink(self.path("out")))
        self.assert_ok(self.run_braid("verify", "real"))

    def test_alien_files(self):
        for alien in ("thesis.docx", "photo.jpg", "run.sh", ".ssh", "2024_photos/beach.jpg", "src/main.cc"):
            with self.subTest(alien):
                self.make_checkpoint()
                os.makedirs(os.path.dirname(self.path("out", alien)), exist_ok=True)
                write_text(self.path("out", alien), "mine")
                self.assert_refused("does not look like a checkpoint", alien.split("/")[0])
                shutil.rmtree(self.path("out"))

    def test_directories_without_weights(self):
        os.mkdir(self.path("out"))
        for name in ("config.json", "notes.md", "train.py"):
            write_text(self.path("out", name), "{}")
        self.assert_refused("does not look like a checkpoint")

    def test_modules_of_a_checkpoint_are_no_aliens(self):
        self.make_checkpoint()
        os.makedirs(self.path("out", "1_Pooling"))
        write_text(self.path("out", "1_Pooling", "config.json"), "{}")
        self.assert_ok(self.merge("--force"))
        self.assertFalse(os.path.exists(self.path("out", "1_Pooling")))

    def test_the_current_directory(self):
        self.assert_refused(out=".")
        os.mkdir(self.path("out"))
        self.make_checkpoint("out/deep")
        self.write_recipe(models=(self.path("a"), self.path("b")), base=self.path("base"))
        recipe_file = self.path("recipe.toml")
        self.assert_refused(
            "current directory", recipe_file=recipe_file, cwd=self.path("out", "deep"), out=self.path("out")
        )
        self.assert_refused(
            "current directory", recipe_file=recipe_file, cwd=self.path("out", "deep"), out="../deep"
        )

    def test_home(self):
        self.make_checkpoint()
        self.make_checkpoint("out/home")
        self.assert_refused("home directory", env={"HOME": self.path("out", "home")})
        shutil.rmtree(self.path("out", "home"))
        self.assert_refused("home directory", env={"HOME": self.path("out")})

    def test_inputs(self):
        for out in ("a", "base", "./a/", "link", "b/../a"):
            with self.subTest(out):
                if out == "link":
                    os.symlink("a", self.path("link"))
                self.assert_refused("input", out=out)
        os.remove(self.path("link"))
        os.mkdir(self.path("parent"))
        shutil.move(self.path("a"), self.path("parent"))
        self.write_recipe(models=("parent/a", "b"))
        self.assert_refused("input", out="parent")

    def test_single_files_that_are_inputs(self):
        self.assert_refused("input", out="a/model.safetensors")
        os.link(self.path("a", "model.safetensors"), self.path("out.safetensors"))
        self.assert_refused("input", out="out.safetensors")

    def test_the_recipe_in_the_output(self):
        self.make_checkpoint()
        shutil.copy(self.path("recipe.toml"), self.path("out"))
        self.assert_refused("input", recipe_file="out/recipe.toml")

    def test_the_staging_directory_of_somebody_else(self):
        os.mkdir(self.path("out.partial"))
        write_text(self.path("out.partial", "thesis.docx"), "mine")
        self.assert_merge_fails(USAGE, "thesis.docx", keeps_out=True)
        self.assertEqual(os.listdir(self.path("out.partial")), ["thesis.docx"])

    def test_a_staging_directory_that_is_a_link(self):
        self.make_checkpoint("elsewhere")
        os.symlink("elsewhere", self.path("out.partial"))
        before = tree_of(self.path("elsewhere"))
        result = self.merge()
        self.assertNotEqual(result.code, 0, str(result))
        self.assertEqual(tree_of(self.path("elsewhere")), before)
        self.assertFalse(os.path.exists(self.path("out")))

    def test_mount_points(self):
        os.mkdir(self.path("out"))
        if subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", self.path("out")], capture_output=True
        ).returncode:
            self.skipTest("this user may not mount a tmpfs")
        self.addCleanup(subprocess.run, ["umount", self.path("out")])
        self.assert_ok(self.merge())  # an empty one is written into
        self.assert_ok(self.run_braid("verify", "out"))
        self.assertFalse(os.path.exists(self.path("out", ".partial")))
        self.assert_refused("mount point")


if __name__ == "__main__":
    main()
