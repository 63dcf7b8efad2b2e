"""The profile: where it is looked for, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from bfp.cli.main import run
from bfp.errors import InputError, SpecError
from bfp.specs.clusters import CLUSTERS as CLUSTERS_BY_KIND
from bfp.specs.clusters import RayTarget, SlurmTarget
from bfp.specs.kuberay import KubeRayTarget
from bfp.specs.profile import profile_for, read_profile
from bfp.specs.target import EXAMPLE
from bfp.specs.template import template

COMMAND = '[local]\nbrain_program = ["{}", "-i", "{{scan}}", "-m", "{{mask}}"]\n'


def write(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def test_the_profile_beside_the_spec_goes_before_that_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    monkeypatch.chdir(tmp_path)
    spec, own = tmp_path / "jobs" / "ingest.yaml", tmp_path / "xdg" / "bfp" / "bfp.toml"
    without = profile_for(spec)
    assert without.file == f"{tmp_path}/jobs/bfp.toml or {tmp_path}/bfp.toml or {own}"
    assert without.local.brain_program is None
    write(own, COMMAND.format("hd-bet"))
    assert profile_for(spec).file == str(own)
    assert profile_for(spec).local.brain_program == ["hd-bet", "-i", "{scan}", "-m", "{mask}"]
    here = write(tmp_path / "bfp.toml", COMMAND.format("hd-bet"))
    assert profile_for(spec).file == str(here), "that of the working directory goes before the user's"
    write(tmp_path / "jobs" / "bfp.toml", COMMAND.format("./bin/mask.sh"))
    command = profile_for(spec).local.brain_program
    assert command is not None
    assert command[0] == f"{tmp_path}/jobs/bin/mask.sh"


def test_without_xdg_the_users_profile_is_in_dot_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", "")
    write(tmp_path / ".config/bfp/bfp.toml", COMMAND.format("~/bin/mask.sh"))
    command = profile_for(tmp_path / "a" / "ingest.yaml").local.brain_program
    assert command is not None
    assert command[0] == f"{tmp_path}/bin/mask.sh"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            'brain_program = ["hd-bet", "{scan}"]',
            "  local.brain_program: [hd-bet, '{scan}']\n    lacks {mask} behind the program's name, as in [",
        ),
        ('brain_program = ["hd-bet"]', "lacks {scan} and {mask} behind"),
        ("brain_program = []", "  local.brain_program: []\n    give at least one"),
        ('brain_program = ["", "{scan}", "{mask}"]', "  local.brain_program[0]: ''\n    must not be empty"),
        ('brain_program = "hd-bet {scan} {mask}"', "{mask}'\n    a list: [a, b]"),
        ("brain_programme = []", "  local.brain_programme: []\n    no such field; the nearest is brain_program"),
        (
            'mlflow = "https://me:pw@host"',
            "  local.mlflow: https://…@host\n    no user or password may stand here",
        ),
        ("[locale]", "  locale.target\n    missing; one of ray, kuberay, slurm; this machine's table is called local"),
        (
            '[lab]\ntarget = "slurm"\nwarning_s = 600\ntime_h = 0.1',
            "  lab.warning_s: 600\n    less than the time limit, which is 360 s",
        ),
        (
            '[lab]\ntarget = "slurm"\nenvironment = "/e"\ncontainer = "/c"',
            "  lab.environment\n    one of environment and container",
        ),
        ("brain_program = [\n'{scan}'\n'{mask}']", "bfp.toml:4\n    not TOML: Unclosed array (at line 4, column 1)"),
    ],
)
def test_what_is_wrong_with_a_profile_is_said_with_its_field(tmp_path: Path, text: str, told: str) -> None:
    file = write(tmp_path / "bfp.toml", f"[local]\n{text}\n")
    with pytest.raises(SpecError) as caught:
        profile_for(tmp_path / "ingest.yaml")
    assert str(caught.value).startswith(str(file))
    assert told in str(caught.value)


def test_a_tracking_folder_is_sought_from_the_profiles_own(tmp_path: Path) -> None:
    for text, expected in (("mlruns", f"file://{tmp_path}/mlruns"), ("https://host/a", "https://host/a")):
        write(tmp_path / "bfp.toml", f'[local]\nmlflow = "{text}"\n')
        assert profile_for(tmp_path / "ingest.yaml").local.mlflow == expected


def test_a_spec_says_that_a_program_is_used_and_never_which() -> None:
    text = template("ingest", schema="x")
    assert "One of: none, given, image, deepbet, program." in text.replace("\n", " ").replace("  # ", "")
    assert EXAMPLE[0] not in text


CLUSTERS = """
[lab]
target = "ray"
address = "http://head:8265/"
token = {file = "token"}
shared_paths = ["/data/"]
env = {AWS_ENDPOINT_URL = "https://s3.example.org"}

[kube]
target = "kuberay"
image = "registry.example.org/bfp:1"
spot_selector = {capacity = "spot"}
workers = {gpu = {cpus = 16, gpus = 8, count = 2, spot = true}}

[night]
target = "slurm"
nodes = 2
"""


def test_every_other_table_is_a_cluster_of_its_kind(tmp_path: Path) -> None:
    write(tmp_path / "bfp.toml", CLUSTERS)
    profile = profile_for(tmp_path / "ingest.yaml")
    lab, kube, night = (profile.cluster(name) for name in ("lab", "kube", "night"))
    assert isinstance(lab, RayTarget)
    assert (lab.address, lab.shared_paths) == ("http://head:8265", ["/data"])
    assert lab.token is not None
    assert lab.token.file == f"{tmp_path}/token"
    assert isinstance(kube, KubeRayTarget)
    assert kube.workers["gpu"].gpus == 8
    assert isinstance(night, SlurmTarget)
    assert night.requeue
    with pytest.raises(
        InputError, match=r"--on nigt: no target has this name .*local, lab, kube, night.*; the nearest is"
    ):
        profile.cluster("nigt")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[lab]\naddress = "http://head:8265"', "  lab.target\n    missing; one of ray, kuberay, slurm"),
        ('[lab]\ntarget = "slum"', "  lab.target: slum\n    one of ray, kuberay, slurm"),
        ('[lab]\ntarget = "ray"', "  lab.address\n    missing: The cluster's dashboard, where its Jobs API is."),
        (
            '[lab]\ntarget = "ray"\naddress = "ray://head:10001"',
            "  lab.address: ray://head:10001\n    the address of the",
        ),
        ('[lab]\ntarget = "ray"\naddress = "http://me:pw@head"', "no user or password may stand here"),
        ('[lab]\ntarget = "ray"\naddress = "http://head"\ntoken = {}', "  lab.token\n    name one place: {env = "),
        ('[lab]\ntarget = "ray"\naddress = "http://head"\nnamespace = "x"', "  lab.namespace: x\n    no such field"),
        (
            '[a]\ntarget = "slurm"\nshared_paths = ["data"]',
            "  a.shared_paths[0]: data\n    an absolute folder other than /",
        ),
        (
            '[a]\ntarget = "slurm"\nenv = {RAY_ADDRESS = "x"}',
            "a.env.RAY_ADDRESS\n    bfp sets what begins with RAY_ and",
        ),
        (
            '[lab]\ntarget = "ray"\naddress = "http://head"\ntoken = "abc"',
            '  lab.token\n    a group of fields: {env = "RAY_AUTH_TOKEN"}',
        ),
        (
            '[k]\ntarget = "kuberay"\nimage = "i"\nhead = 3',
            "  k.head: 3\n    a group of fields: {name = value}",
        ),
        ('[lab]\ntarget = "ray"\naddress = 8265', "  lab.address: 8265\n    text; put it in quotes: '8265'"),
        (
            '[a]\ntarget = "slurm"\nsecrets_file = "s3.env"',
            "  a.secrets_file\n    a path on the cluster, from / or your home: ~/.config/bfp/secrets.env",
        ),
        (
            '[k]\ntarget = "kuberay"\nimage = "i"\nworkers = {gpu = {cpu = 3}}',
            "  k.workers.gpu.cpu: 3\n    no such field; the",
        ),
        ('[k]\ntarget = "kuberay"\nimage = "i"\nnamespace = "My Jobs"', "a name as Kubernetes wants it"),
        ("lab = 3", "  lab: 3\n    no table; a target is one: [local] or [NAME]"),
    ],
)
def test_what_is_wrong_with_a_cluster_is_said_with_its_field(tmp_path: Path, text: str, told: str) -> None:
    write(tmp_path / "bfp.toml", f"{text}\n")
    with pytest.raises(SpecError) as caught:
        profile_for(tmp_path / "ingest.yaml")
    assert told in str(caught.value)


@pytest.mark.parametrize("line", ['token = "hunter2"', 'token = {value = "hunter2"}', 'api_key = "hunter2"'])
def test_a_secret_where_a_reference_belongs_is_not_shown(tmp_path: Path, line: str) -> None:
    write(tmp_path / "bfp.toml", f'[lab]\ntarget = "ray"\naddress = "http://head"\n{line}\n')
    with pytest.raises(SpecError) as caught:
        profile_for(tmp_path / "ingest.yaml")
    assert f"lab.{line.split()[0]}" in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "DB_PASSWORD", "PROXY"])
def test_a_secret_in_a_profile_is_refused_and_not_shown(tmp_path: Path, name: str) -> None:
    value = "https://me:hunter2@proxy" if name == "PROXY" else "hunter2"
    write(tmp_path / "bfp.toml", f'[a]\ntarget = "slurm"\nenv = {{{name} = "{value}"}}\n')
    with pytest.raises(SpecError) as caught:
        profile_for(tmp_path / "ingest.yaml")
    assert f"a.env.{name}\n    a secret" in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        'lab_token = "ghp_hunter2hunter2"',
        'AWS_SECRET_ACCESS_KEY = "hunter2"',
        '["My Lab"]\nenv = {AWS_SECRET_ACCESS_KEY = "hunter2"}',
        '[a]\ntarget = "ghp_hunter2hunter2"',
        '[a]\ntarget = "slurm"\nvars = {AWS_SECRET_ACCESS_KEY = "hunter2"}',
        '[a]\ntarget = "ray"\naddress = "eyJhunter2hunter2.eyJhunter2.x"',
        '[a]\ntarget = "ray"\naddress = "http://head"\ntoken = {env = "ghp_hunter2hunter2"}',
        f'[a]\ntarget = "ray"\naddress = "http://head"\ntoken = {{env = "{"deadbeef" * 8}"}}',
    ],
)
def test_a_secret_in_the_wrong_place_is_not_shown(tmp_path: Path, text: str) -> None:
    write(tmp_path / "bfp.toml", f"{text}\n")
    with pytest.raises(SpecError) as caught:
        profile_for(tmp_path / "ingest.yaml")
    assert "hunter2" not in str(caught.value)
    assert "deadbeef" not in str(caught.value)


def test_every_variable_that_is_wrong_is_named(tmp_path: Path) -> None:
    write(
        tmp_path / "bfp.toml",
        '[a]\ntarget = "slurm"\nenv = {HF_TOKEN = "x", OK = "1", BFP_A = "2", my-name = "x", B = 3, MY_TOKEN = "y"}\n',
    )
    with pytest.raises(SpecError) as caught:
        profile_for(tmp_path / "ingest.yaml")
    assert {problem.path for problem in caught.value.problems} == {
        "a.env.HF_TOKEN",
        "a.env.BFP_A",
        "a.env.my-name",
        "a.env.B",
        "a.env.MY_TOKEN",
    }


@pytest.mark.parametrize(
    "value",
    [
        "ghp_" + "a1B2" * 9,
        "github_pat_" + "11ABCDEFG0" * 2,
        "glpat-" + "xY-3" * 5,
        "hf_" + "abCD" * 8,
        "AKIA" + "IOSFODNN7" * 2,
        "https://git.example.org/?key=ghp_" + "a1B2" * 9,
        "-----BEGIN RSA PRIVATE KEY-----",
    ],
)
def test_a_token_is_known_by_its_look_whatever_it_is_called(tmp_path: Path, value: str) -> None:
    write(tmp_path / "bfp.toml", f'[a]\ntarget = "slurm"\nenv = {{MINE = "{value}", HF = "hf_mirror", A = "AKIA"}}\n')
    with pytest.raises(SpecError) as caught:
        profile_for(tmp_path / "ingest.yaml")
    assert str(caught.value).count("a secret") == str(caught.value).count("a.env.MINE\n    a secret") == 1
    assert value not in str(caught.value)
    write(tmp_path / "bfp.toml", f'[a]\ntarget = "slurm"\nacount = "{value}"\n')
    with pytest.raises(SpecError, match="acount\n    no such field; the nearest is account"):
        profile_for(tmp_path / "ingest.yaml")


@pytest.mark.parametrize(
    "option",
    ["--output=/tmp/x", "--export=ALL", "--signal=B:TERM@5", "--requeue", "--arr=1-3", "--job=x", "--dep=", "--wait"],
)
def test_an_option_of_sbatch_that_bfp_sets_itself_is_refused_under_a_short_name_too(
    tmp_path: Path, option: str
) -> None:
    write(tmp_path / "bfp.toml", f'[a]\ntarget = "slurm"\noptions = ["--constraint=a100", "{option}"]\n')
    with pytest.raises(SpecError) as caught:
        profile_for(tmp_path / "ingest.yaml")
    assert f"a.options[1]: '{option}'\n    bfp sets this itself; leave it out" in str(caught.value)
    assert "options[0]" not in str(caught.value)


def test_where_an_image_and_secrets_are_does_not_hang_on_the_working_directory(tmp_path: Path) -> None:
    for text, expected in (("bfp.sif", f"{tmp_path}/bfp.sif"), ("/d/b.sif", "/d/b.sif"), ("docker://b", "docker://b")):
        for secrets in ("/data/s3.env", "~/s3.env"):
            write(tmp_path / "bfp.toml", f'[a]\ntarget = "slurm"\ncontainer = "{text}"\nsecrets_file = "{secrets}"\n')
            found = profile_for(tmp_path / "ingest.yaml").cluster("a")
            assert isinstance(found, SlurmTarget)
            assert (found.container, found.secrets_file) == (expected, secrets)


def test_the_profile_that_init_writes_has_every_field_and_is_valid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["init", "profile"]) == 0
    text = (tmp_path / "bfp.toml").read_text()
    profile = read_profile(tmp_path / "bfp.toml")
    assert list(profile.clusters) == ["ray", "kuberay", "slurm"]
    for name, model in CLUSTERS_BY_KIND.items():
        fields = text.partition(f"\n[{name}]\n")[2]
        assert all(
            f"\n{field} = " in fields or f"# {field} = " in fields or f".{field}" in fields
            for field in model.model_fields
            if field != "target"
        ), name
    assert run(["init", "profile"]) == 2
    assert run(["validate", "bfp.toml"]) == 0
    assert capsys.readouterr().out.endswith("bfp.toml: valid, profile of local, ray, kuberay, slurm\n")
