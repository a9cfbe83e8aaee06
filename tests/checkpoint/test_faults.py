"""Damaged sources, full disks, kills: a clear error, nothing at the destination, the source untouched."""

import hashlib
import json
import os
import pickle
import resource
import shutil
import signal
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from gpt_neo.checkpoint.bundle import Bundle
from gpt_neo.checkpoint.convert import export_hf, import_hf
from gpt_neo.checkpoint.safetensors import write_safetensors
from gpt_neo.checkpoint.torch_file import TorchFile
from gpt_neo.errors import CheckpointError

F32 = np.dtype(np.float32)
WIDTH, VOCAB, LENGTH, LAYERS = 16, 48, 64, 2
CONFIG = {
    "model_type": "gpt_neo",
    "vocab_size": VOCAB,
    "max_position_embeddings": LENGTH,
    "hidden_size": WIDTH,
    "num_layers": LAYERS,
    "num_heads": 2,
    "attention_types": [[["global", "local"], 1]],
    "window_size": 8,
    "eos_token_id": 0,
}


def shapes(width=WIDTH, vocab=VOCAB):
    d = width
    yield "transformer.wte.weight", (vocab, d)
    yield "transformer.wpe.weight", (LENGTH, d)
    for name in ("weight", "bias"):
        yield f"transformer.ln_f.{name}", (d,)
    for i in range(LAYERS):
        at = f"transformer.h.{i}."
        for name in (
            "ln_1.weight",
            "ln_1.bias",
            "ln_2.weight",
            "ln_2.bias",
            "attn.attention.out_proj.bias",
            "mlp.c_proj.bias",
        ):
            yield at + name, (d,)
        for name in ("q", "k", "v", "out"):
            yield f"{at}attn.attention.{name}_proj.weight", (d, d)
        yield at + "mlp.c_fc.weight", (4 * d, d)
        yield at + "mlp.c_fc.bias", (4 * d,)
        yield at + "mlp.c_proj.weight", (d, 4 * d)


def write_source(folder, sharded=False, width=WIDTH, vocab=VOCAB, change=lambda name, value: value):
    """A random GPT-Neo as safetensors, without PyTorch."""
    os.makedirs(folder)
    rng = np.random.default_rng(0)
    values = {n: change(n, rng.standard_normal(s, np.float32) * 0.1) for n, s in shapes(width, vocab)}
    with open(os.path.join(folder, "config.json"), "w") as handle:
        json.dump({**CONFIG, "hidden_size": width, "vocab_size": vocab}, handle)
    names = list(values)
    groups = [names[:9], names[9:]] if sharded else [names]
    places = {}
    for i, group in enumerate(groups):
        file = f"model-{i}.safetensors" if sharded else "model.safetensors"
        write_safetensors(
            os.path.join(folder, file), {n: (F32, values[n].shape) for n in group}, {n: [values[n]] for n in group}
        )
        places.update(dict.fromkeys(group, file))
    if sharded:
        with open(os.path.join(folder, "model.safetensors.index.json"), "w") as handle:
            json.dump({"weight_map": places}, handle)
    return str(folder)


def fingerprint(folder):
    result = hashlib.sha256()
    for name in sorted(os.listdir(folder)):
        with open(os.path.join(folder, name), "rb") as handle:
            result.update(name.encode() + handle.read())
    return result.hexdigest()


def cut(folder):
    path = os.path.join(folder, "model-1.safetensors")
    os.truncate(path, os.path.getsize(path) - 10)


def cut_header(folder):
    os.truncate(os.path.join(folder, "model-1.safetensors"), 100)


def lose_shard(folder):
    os.remove(os.path.join(folder, "model-1.safetensors"))


def edit_index(folder, edit):
    path = os.path.join(folder, "model.safetensors.index.json")
    index = json.load(open(path))
    edit(index["weight_map"])
    json.dump(index, open(path, "w"))


def overlap(folder):
    path = os.path.join(folder, "model-1.safetensors")
    data = open(path, "rb").read()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    next(entry for name, entry in header.items() if name != "__metadata__")["data_offsets"] = [0, 12]
    text = json.dumps(header).encode()
    open(path, "wb").write(struct.pack("<Q", len(text)) + text + data[8 + size :])


DAMAGES = [
    (cut, "the file is cut off"),
    (cut_header, "cut off in its header"),
    (lose_shard, "model-1.safetensors is missing"),
    (overlap, "bytes do not make"),
    (lambda f: edit_index(f, lambda m: m.update({"transformer.wte.weight": "model-1.safetensors"})), "wrong for 2"),
    (lambda f: edit_index(f, lambda m: m.pop("transformer.wte.weight")), "is in it and not in the index"),
    (lambda f: edit_index(f, lambda m: m.update(x="../elsewhere")), "which is not beside it"),
    (lambda f: open(os.path.join(f, "config.json"), "w").write("{"), "not valid JSON"),
]


@pytest.mark.parametrize("damage, message", DAMAGES)
def test_damaged_sources(tmp_path, damage, message):
    source = write_source(tmp_path / "hf", sharded=True)
    damage(source)
    before = fingerprint(source)
    with pytest.raises(CheckpointError, match=message):
        import_hf(source, str(tmp_path / "run"))
    assert os.listdir(tmp_path) == ["hf"] and fingerprint(source) == before


def test_nan_is_named_on_both_ways(tmp_path):
    def spoil(name, value):
        if name.endswith("h.1.mlp.c_fc.weight"):
            value[3, 5] = np.nan
        return value

    source = write_source(tmp_path / "hf", change=spoil)
    with pytest.raises(CheckpointError, match="tensor gpt2/h1/mlp/conv1d_main/c_fc/kernel holds NaN"):
        import_hf(source, str(tmp_path / "run"))
    shutil.rmtree(source)
    run = import_hf(write_source(tmp_path / "hf"), str(tmp_path / "run"))
    prefix = str(tmp_path / "run" / "model.ckpt-0")
    entry = Bundle(prefix).entries["gpt2/h0/attn/v"]
    with open(prefix + ".data-00000-of-00001", "r+b") as handle:
        handle.seek(entry.offset)
        handle.write(np.float32(np.nan).tobytes())
    with pytest.raises(CheckpointError, match="tensor gpt2/h0/attn/v is damaged: its checksum is wrong"):
        export_hf(run, prefix, str(tmp_path / "out"))
    assert sorted(os.listdir(tmp_path)) == ["hf", "run"]


def test_a_failed_comparison_leaves_nothing(tmp_path):
    def check(folder):
        raise CheckpointError("the conversion is wrong")

    source = write_source(tmp_path / "hf")
    with pytest.raises(CheckpointError, match="the conversion is wrong"):
        import_hf(source, str(tmp_path / "run"), check=check)
    assert os.listdir(tmp_path) == ["hf"]


def test_a_disk_that_fills_up(tmp_path):
    """A limit on the size of files makes the system refuse the write half-way, as a full disk does."""
    source = write_source(tmp_path / "hf")
    run = import_hf(source, str(tmp_path / "run"))
    before = fingerprint(tmp_path / "run")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        with pytest.raises(CheckpointError, match="out: cannot be written: .*; nothing is there"):
            export_hf(run, str(tmp_path / "run" / "model.ckpt-0"), str(tmp_path / "out"))
        with pytest.raises(CheckpointError, match="run2: cannot be written: .*; nothing is there"):
            import_hf(source, str(tmp_path / "run2"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert sorted(os.listdir(tmp_path)) == ["hf", "run"] and fingerprint(tmp_path / "run") == before


KILLED = """
import os, signal, sys
from gpt_neo.checkpoint import convert, bundle
count, calls = int(sys.argv[3]), 0
def hook(event, args):
    global calls
    if event in ("open", "os.rename", "os.mkdir", "os.remove") and ".partial" in str(args[0]):
        calls += 1
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
add = bundle.BundleWriter.add
def counted(self, *args):
    hook("open", [".partial"])
    return add(self, *args)
bundle.BundleWriter.add = counted
sys.addaudithook(hook)
convert.import_hf(sys.argv[1], sys.argv[2])
print("finished", calls)
"""


def test_a_kill_at_any_moment(tmp_path):
    source = write_source(tmp_path / "hf")
    before, destination = fingerprint(source), tmp_path / "run"
    moments = 0
    for count in (1, 2, 4, 20, 31, 33, 34, 35, 10_000):
        done = subprocess.run(
            [sys.executable, "-c", KILLED, source, str(destination), str(count)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert fingerprint(source) == before
        if done.returncode == -signal.SIGKILL:
            moments += 1
            assert not destination.exists()
        else:
            assert done.returncode == 0, done.stderr
            break
    assert moments > 4 and Bundle(str(destination / "model.ckpt-0")).names()
    assert sorted(os.listdir(tmp_path)) == ["hf", "run"]  # leftovers of the killed runs are gone


class Attack:
    """Pickles to a call."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "attack", [Attack(os.system, "touch {mark}"), Attack(eval, "open('{mark}', 'w')"), Attack(getattr, {}, "clear")]
)
@pytest.mark.parametrize("old", [False, True])
def test_a_malicious_pickle_is_refused(tmp_path, attack, old):
    mark = tmp_path / "mark"
    function, args = attack.call
    fill = [word.format(mark=mark) if isinstance(word, str) else word for word in args]
    payload = pickle.dumps({"transformer.wte.weight": Attack(function, *fill)}, protocol=2)
    source = write_source(tmp_path / "hf")
    os.remove(os.path.join(source, "model.safetensors"))
    path = os.path.join(source, "pytorch_model.bin")
    if old:
        open(path, "wb").write(payload)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", payload)
    with pytest.raises(CheckpointError, match=r"refused: its pickle asks for \w+\.\w+, which no tensor needs"):
        import_hf(source, str(tmp_path / "run"))
    assert not mark.exists() and os.listdir(tmp_path) == ["hf"]


def test_a_tensor_that_reaches_past_its_storage_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "model.bin"
    torch.save({"a": torch.zeros(16)}, path)
    data = path.read_bytes()
    # the tensor's size in its pickle, 16 in one byte (K\x10), first of storage and then of shape
    at = data.rindex(b"K\x10", 0, data.index(b"PK\x01\x02"))
    path.write_bytes(data[:at] + b"K\x7f" + data[at + 2 :])
    with pytest.raises(CheckpointError, match="reaches past its storage|damaged"):
        TorchFile(str(path))
