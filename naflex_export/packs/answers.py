"""Where a port's answers come from: files that it wrote, an ONNX file, a command, or an endpoint (`endpoints`).

Each returns features by case, and stages by case where there are any. Photos go through the port's own preprocessing.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from naflex_export.errors import NaflexExportError, RequestError
from naflex_export.packs.asked import Asked, NoAnswerError, again, of_arrays
from naflex_export.packs.opened import Array, Pack
from naflex_export.serving.optional_package import optional_package

SECONDS = 120
"""That a command or an endpoint may take for a photo."""


@dataclass(frozen=True)
class Answers:
    """What a port answered.

    Attributes:
        features: [images, features] by case.
        stages: of cases, by module.
        origin: where they came from, in words.
        problems: why there is no answer to a case, a line each.
        asked: what was asked beside the cases.
        ignored: names of answers that are to no case.
    """

    features: dict[str, Array]
    origin: str
    stages: dict[str, dict[str, Array]] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    asked: tuple[Asked, ...] = ()
    ignored: tuple[str, ...] = ()

    def with_asked(self, asked: tuple[Asked, ...]) -> Answers:
        """Return the answers with what was asked beside the cases."""
        return replace(self, asked=asked)


def from_files(pack: Pack, path: Path) -> Answers:
    """Return the answers in a folder of .npy files or in one .safetensors file.

    Raises:
        RequestError: there is no such file, it cannot be read, or it answers no case.
    """
    if path.is_dir():
        files = {file.relative_to(path).with_suffix("").as_posix(): file for file in sorted(path.rglob("*.npy"))}
        found = {key: _read(file) for key, file in files.items()}
    else:
        found = _tensors(path)
    features = {case: found[key] for case in pack.cases for key in (case, f"{case}/features") if key in found}
    stages: dict[str, dict[str, Array]] = {}
    for key, value in found.items():
        case, _, stage = key.partition("/stages/")
        if stage and case in pack.cases:
            stages.setdefault(case, {})[stage] = value
    if not features:
        raise RequestError(
            f"answers {str(path)!r} hold {', '.join(list(found)[:5]) or 'nothing'}: expected arrays named after cases, "
            f"such as {', '.join(pack.cases[:3])}"
        )
    known = {*(f"{case}{end}" for case in pack.cases for end in ("", "/features"))}
    ignored = tuple(key for key in found if key not in known and key.partition("/stages/")[0] not in pack.cases)
    return Answers(features, str(path), stages, ignored=ignored)


def _read(file: Path) -> Array:
    try:
        return _numbers(np.load(file, allow_pickle=False))
    except Exception as error:  # numpy raises what the bytes lead it to
        raise RequestError(f"answer {str(file)!r} cannot be read ({error}): expected an array of numbers") from error


def _tensors(path: Path) -> dict[str, Array]:
    try:
        from safetensors.numpy import load_file

        return {name: _numbers(value) for name, value in load_file(path).items()}
    except Exception as error:  # the reader raises errors of its own
        raise RequestError(
            f"answers {str(path)!r} cannot be read ({error}): expected a folder of .npy files, or a .safetensors file "
            "of float32 tensors"
        ) from error


def _numbers(found: Any) -> Array:
    """Return an array, of whatever it was read as.

    Raises:
        ValueError: it is none, or holds no real numbers.
    """
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "fiu":
        raise ValueError(f"it holds {getattr(found, 'dtype', type(found).__name__)}")
    return found


def from_onnx(pack: Pack, path: Path, inputs: Mapping[str, str], output: str = "") -> Answers:
    """Return what an ONNX file answers; a case that it refuses is a problem.

    Args:
        pack: whose cases to run.
        path: of the file.
        inputs: the file's name of each of the pack's inputs, where it has others.
        output: of the file, that holds features; by default one of two dimensions, or the first.

    Raises:
        RequestError: it cannot be opened, an input of it is none of the pack's, or a name that is given is of nothing.
        BackendError: there is no ONNX Runtime.
    """
    onnxruntime = optional_package("onnxruntime", "onnx")
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises classes of its own
        raise RequestError(f"{str(path)!r} cannot be opened by ONNX Runtime: {error}") from error
    _check_names(pack, path, session, inputs, output)
    of_file = {inputs.get(name, name): name for name in pack.manifest["inputs"]}
    for one in session.get_inputs():
        if one.name not in of_file:
            raise RequestError(
                f"{str(path)!r} has an input {one.name!r}, and the pack has {', '.join(pack.manifest['inputs'])}: give "
                f"--input NAME={one.name} for the one that it is"
            )
    outputs = session.get_outputs()
    named = [found.name for found in outputs if found.name == output or (not output and len(found.shape or ()) == 2)]
    chosen = (named or [outputs[0].name])[0]

    def run(given: Mapping[str, Array]) -> Array:
        feed = {one.name: given[of_file[one.name]].astype(_dtype(one.type)) for one in session.get_inputs()}
        (found,) = session.run([chosen], feed)
        return np.asarray(found)

    features, problems = {}, []
    for case in pack.cases:
        try:
            features[case] = run(pack.inputs(case))
        except Exception as error:  # whatever it raises on a case that is in the pack, it has failed
            problems.append(f"{case}: ONNX Runtime refuses it: {str(error).strip().splitlines()[0][:300]}")
    questions = of_arrays(run, pack) if features else ()
    return Answers(features, str(path), problems=tuple(problems), asked=questions)


def _check_names(pack: Pack, path: Path, session: Any, inputs: Mapping[str, str], output: str) -> None:
    """Check that names which a caller gives are of something in the pack and in an ONNX file.

    Raises:
        RequestError: one is not.
    """
    of_pack = pack.manifest["inputs"]
    of_file = [one.name for one in session.get_inputs()]
    for name, other in inputs.items():
        if name not in of_pack or other not in of_file:
            raise RequestError(
                f"--input {name}={other}: expected one of the pack's inputs ({', '.join(of_pack)}), =, and one of "
                f"{str(path)!r} ({', '.join(of_file)})"
            )
    outputs = [one.name for one in session.get_outputs()]
    if output and output not in outputs:
        raise RequestError(f"--output {output!r} is not of {str(path)!r}: expected one of {', '.join(outputs)}")


def from_command(pack: Pack, command: str) -> Answers:
    """Return the vectors that a command prints, a photo a call, whose path stands for `{photo}`.

    Raises:
        RequestError: the command has no `{photo}`, or cannot be started.
    """
    if "{photo}" not in command:
        raise RequestError(f"--command {command!r} has no {{photo}}: expected it where the photo's path is to stand")
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise RequestError(f"--command {command!r} is no command ({error}): expected words of a shell") from error

    def ask(photo: Path) -> Array:
        return vector_in(_printed([word.replace("{photo}", str(photo)) for word in words]))

    found = of_cases(
        pack, pack.photo_cases, lambda case: np.stack([ask(photo) for photo in pack.photos(case)]), command
    )
    return found.with_asked(again(ask, pack)) if found.features else found


def _printed(words: Sequence[str]) -> str:
    """Return what a command prints; one that takes too long is ended, with all that it has started.

    Raises:
        RequestError: it cannot be started.
        NoAnswerError: it takes too long.
        ValueError: it says that it failed.
    """
    pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
    try:
        process = subprocess.Popen(
            words, stdin=nothing, stdout=pipe, stderr=pipe, text=True, errors="replace", start_new_session=True
        )
    except OSError as error:
        raise RequestError(f"--command: {words[0]!r} cannot be run ({error.strerror}): expected a program") from error
    with process:
        try:
            said, complaint = process.communicate(timeout=SECONDS)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise NoAnswerError(f"it printed nothing whole within {SECONDS} s") from error
            raise
    if process.returncode:
        raise ValueError(f"it exited with {process.returncode}: {complaint.strip()[-300:]}")
    return said


def vector_in(text: str) -> Array:
    """Return the vector in a text: JSON, as OpenAI's reply or a list, or numbers with blanks or commas between.

    Raises:
        ValueError: there is none.
    """
    found = vectors_in(text)
    if len(found) != 1:
        raise ValueError(f"expected one vector, found an array of shape {list(found.shape)}")
    return found[0]


def vectors_in(text: str) -> Array:
    """Return the vectors [n, C] in a text, as `vector_in` reads one.

    Raises:
        ValueError: there is none, or they have several lengths.
    """
    try:
        found: Any = json.loads(text)
    except ValueError:
        try:
            found = [float(word) for word in text.replace(",", " ").split()]
        except ValueError:
            raise ValueError(f"expected a vector, found the text {text.strip()[:80]!r}") from None
    for key in ("data", "vectors", "embeddings", "embedding", "features"):
        if isinstance(found, dict) and key in found:
            found = found[key]
    if isinstance(found, dict):
        raise ValueError(f"expected a vector, found an object of {', '.join(found) or 'nothing'}")
    if isinstance(found, list) and found and all(isinstance(one, dict) for one in found):
        ordered = sorted(found, key=lambda one: one.get("index", 0))
        found = [one.get("embedding") for one in ordered]
    vectors = np.asarray(found, dtype=np.float64)
    vectors = vectors[None] if vectors.ndim == 1 else vectors
    if vectors.ndim != 2 or not vectors.size:
        raise ValueError(f"expected vectors, found an array of shape {list(vectors.shape)}")
    return vectors


def of_cases(pack: Pack, cases: Sequence[str], answer: Callable[[str], Array], origin: str) -> Answers:
    """Return the answers to some cases of a pack; one that fails is a problem, and has no answer.

    Args:
        pack: whose cases they are.
        cases: their names.
        answer: returns the features of a case.
        origin: where they come from, in words.
    """
    features, problems = dict[str, Array](), list[str]()
    for case in cases:
        try:
            features[case] = answer(case)
        except NaflexExportError:
            raise
        except Exception as error:  # a reply may be anything, and what reads it may raise anything
            what = "no vector" if case in pack.photo_cases else "no answer"
            told = str(error) if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {error}"
            problems.append(f"{case}: {what} from {origin!r}: {told}")
            if isinstance(error, NoAnswerError):
                break
    return Answers(features, origin, problems=tuple(problems))


def _dtype(kind: str) -> Any:
    names = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64"}
    names |= {f"tensor({name})": name for name in ("int64", "int32", "bool")}
    return names.get(kind, "float32")
