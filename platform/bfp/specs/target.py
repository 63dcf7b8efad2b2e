"""What every target of a profile has: this machine's, and what a cluster has besides.

A secret is only ever referred to: by the name of an environment variable, of a file, or of a Kubernetes secret.
"""

from __future__ import annotations

import os
import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, StringConstraints, ValidationInfo, model_validator

from bfp.specs.fields import ENV_NAME_PATTERN, Clash, Folders, Misfit, Strict, absolute
from bfp.words import toml_list

EXAMPLE = ("mri_synthstrip", "-i", "{scan}", "-m", "{mask}")

Text = Annotated[str, StringConstraints(min_length=1, max_length=2048)]

# What is called so is a secret, and has no place in a profile or in what is sent to a cluster.
SECRET = re.compile(r"SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|PRIVATE|ACCESS_KEY|API_?KEY", re.IGNORECASE)

# What is a secret by its look, whatever it is called: tokens of GitHub, GitLab and Hugging Face, key ids of AWS, and a
# private key. Each begins as its maker has it begin; the lengths keep words such as hf_mirror out.
SECRET_VALUE = re.compile(
    r"(?<![A-Za-z0-9])(gh[a-z]_[A-Za-z0-9]{8,}|github_pat_[A-Za-z0-9]{8,}|glpat-[A-Za-z0-9_-]{8,}|hf_[A-Za-z0-9]{16,}"
    r"|(AKIA|ASIA)[A-Z0-9]{12,}|eyJ[A-Za-z0-9_-]{8,}\.)|-----BEGIN [A-Z ]*PRIVATE KEY"
)
A_SECRET = (
    "a secret, which never stands in a profile; it has to be there already where the job runs (README, “Secrets on a "
    "cluster”)"
)


def _of_a_mask(command: list[str], info: ValidationInfo) -> list[str]:
    lacking = [word for word in ("{scan}", "{mask}") if not any(word in other for other in command[1:])]
    if lacking:
        raise ValueError(f"lacks {' and '.join(lacking)} behind the program's name, as in {toml_list(EXAMPLE)}")
    program = os.path.expanduser(command[0])
    if os.sep in program and isinstance(info.context, Folders):
        program = absolute(program, info.context.spec)
    return [program, *command[1:]]


def _of_mlflow(uri: str, info: ValidationInfo) -> str:
    found = urlsplit(uri)
    if "@" in found.netloc:
        raise ValueError(
            "no user or password may stand here: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
            "MLFLOW_TRACKING_TOKEN"
        )
    if "://" in uri:
        return uri
    return f"file://{absolute(uri, info.context.spec)}" if isinstance(info.context, Folders) else uri


def _a_folder(path: str) -> str:
    if not os.path.isabs(path) or os.path.normpath(path) == "/":
        raise ValueError("an absolute folder other than /, the same on every node: /data")
    return os.path.normpath(path)


def from_here(path: str, info: ValidationInfo) -> str:
    return absolute(path, info.context.spec) if isinstance(info.context, Folders) else path


def _not_secret(env: dict[str, str]) -> dict[str, str]:
    clashes = []
    for name, value in env.items():
        if SECRET.search(name) or SECRET_VALUE.search(value) or "@" in urlsplit(value).netloc:
            clashes.append(Clash(name, A_SECRET))
        elif name.startswith(("RAY_", "BFP_")):
            clashes.append(Clash(name, "bfp sets what begins with RAY_ and BFP_ itself"))
    if clashes:
        raise Misfit(*clashes)
    return env


EnvName = Annotated[str, StringConstraints(pattern=ENV_NAME_PATTERN)]
SharedFolder = Annotated[Text, AfterValidator(_a_folder)]


def _a_name(name: str) -> str:
    if SECRET_VALUE.search(name) or re.fullmatch(r"[0-9A-Fa-f]{32,}", name):
        raise ValueError("the name of the variable, and not the secret itself")
    return name


class Secret(Strict):
    """Where a secret is found on the machine that submits."""

    env: Annotated[EnvName, AfterValidator(_a_name)] | None = Field(
        None, description="The environment variable that holds it.", examples=["LAB_TOKEN"]
    )
    file: Annotated[Text, AfterValidator(from_here)] | None = Field(
        None, description="The file that holds it, and nothing else.", examples=["~/.ray/auth_token"]
    )

    @model_validator(mode="after")
    def _one(self) -> Secret:
        if (self.env is None) == (self.file is None):
            raise Misfit(Clash("", 'name one place: {env = "NAME"} or {file = "PATH"}'))
        return self


class LocalTarget(Strict):
    """This machine."""

    brain_program: (
        Annotated[
            list[Annotated[str, StringConstraints(min_length=1)]], Field(min_length=1), AfterValidator(_of_a_mask)
        ]
        | None
    ) = Field(
        None,
        description="The command of `preprocessing.brain: program`, word for word and without a shell: a program (on "
        "PATH, or its path, from this file's folder) and its arguments. {scan}: the .nii.gz file that it reads. "
        "{mask}: the one that it has to write, on the scan, in which every voxel that is not 0 is brain.",
        examples=[list(EXAMPLE)],
    )
    mlflow: Annotated[str, StringConstraints(min_length=1), AfterValidator(_of_mlflow)] | None = Field(
        None,
        description="Where the figures and the spec of every run go besides its folder: an MLflow tracking server, or "
        "a folder (from this file's). An extra: pip install 'bfp[mlflow]'.",
        examples=["https://mlflow.example.org", "mlruns"],
    )


class ClusterTarget(LocalTarget):
    """What every cluster has."""

    shared_paths: list[SharedFolder] = Field(
        [],
        description="Folders that every node sees under the same path, such as a network file system. A local path of "
        "a spec has to lie in one of them; s3:// needs none.",
        examples=[["/data"]],
    )
    env: Annotated[dict[EnvName, str], AfterValidator(_not_secret)] = Field(
        {},
        description="Environment variables of the job there, such as the storage endpoint. Never a secret.",
        examples=[{"AWS_ENDPOINT_URL": "https://s3.example.org"}],
    )
