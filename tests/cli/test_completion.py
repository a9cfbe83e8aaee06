"""What the shells are told."""

import subprocess

from gpt_neo.cli.commands import COMMANDS, main


def completed(script, *words):
    """What bash would offer for the last of these words."""
    ask = f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _shtab_gpt_neo; echo ${{COMPREPLY[@]}}"
    done = subprocess.run(["bash", "-c", f"{script}\n{ask}"], capture_output=True, text=True, check=False)
    return done.stdout.split()


def test_bash_completes_commands_flags_and_choices(capsys, tmp_path, monkeypatch):
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert set(completed(script, "gpt-neo", "''")) >= set(COMMANDS)
    assert completed(script, "gpt-neo", "tra") == ["train", "train-tokenizer"]
    assert completed(script, "gpt-neo", "train", "--steps_per_c") == ["--steps_per_checkpoint"]
    assert completed(script, "gpt-neo", "train", "--backend", "x") == ["xla"]
    (tmp_path / "my_config.json").touch()
    monkeypatch.chdir(tmp_path)
    assert "my_config.json" in completed(script, "gpt-neo", "train", "--model", "my_")


def test_the_other_shells(capsys):
    for shell in ("zsh", "tcsh"):
        assert main(["completion", shell]) == 0 and "gpt-neo" in capsys.readouterr().out
