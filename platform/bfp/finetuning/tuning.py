"""Training end to end: the encoder (whole, or by low-rank adapters), attention and head of one fold, epoch by epoch.

1. a fifth of the training subjects is set aside; the others are learned from (an inner split: tested sessions choose
   nothing)
2. the network begins as the frozen model that was fitted on those others (`network`): that is epoch 0
3. an epoch is one pass over the sessions; a step takes some sessions, and of each some slices, spread over it
4. after each epoch all slices of the sessions set aside are judged; the epoch with the highest merit is taken, 0 too
5. its network is tested on all slices of the tested sessions, in the way that inference uses it

An epoch that is done is kept, and one that goes on from it ends as if undisturbed: every draw follows from the seed,
the fold, the epoch and the step.

    <kept>/epoch-<n>.safetensors   what is trained, AdamW's moments, the best so far; in its metadata how it went

Full tuning is RETFound's (Zhou et al. 2023, doi 10.1038/s41586-023-06555-x; the released `main_finetune.py` and
`util/lr_decay.py`, after MAE): AdamW, layer-wise decay of the rate, linear warm-up and half a cosine by the step, no
weight decay on biases, norms, positions and tokens, stochastic depth, smoothed labels, the epoch chosen by AUROC.
Departures: a sample is a session and not an image, no augmentation (theirs is RandAugment and random erasing, made for
photographs), and the head begins as the frozen one and not near zero.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy
import safetensors.torch
import torch
import torch.nn.functional as F
from timm.layers import DropPath
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from bfp.features.describe import EncoderVectors
from bfp.finetuning.crossvalidation import FoldResult, Study, digest_of
from bfp.finetuning.heads import fit_head, inner_folds
from bfp.finetuning.logistic import Logistic
from bfp.finetuning.network import Begin, Place, Pooled, SessionNetwork, within_of
from bfp.finetuning.session_stacks import KeptVectors, Places, Stacks, drawn
from bfp.models import adapters
from bfp.models.attention import AttentionMap, AttentionPooling
from bfp.models.encoder import LoadedEncoder, with_weights_told
from bfp.models.layer_decay import depth_rate
from bfp.models.linear import LinearHead, standardisation
from bfp.models.pooling import Pooling
from bfp.models.tensor_files import header_of
from bfp.storage import Place as StoragePlace

BATCH_OF_RATE = 256
"""Sessions in a step to which a learning rate is told, as in MAE and RETFound."""

UNDECAYED = ("pos_embed", "cls_token", "reg_token")


@dataclass(frozen=True, slots=True)
class Tuning:
    """How it is trained. learning_rate: at the peak, for a step of BATCH_OF_RATE sessions; it is scaled to theirs.

    tune: what is trained of the encoder. slices_per_session: of a session, in a step. class_balanced: sessions weigh
    inversely to how many there are of their class. layer_decay, drop_path: of full tuning; rank, alpha: of adapters.
    """

    tune: Literal["frozen", "lora", "full"]
    epochs: int
    warmup_epochs: float
    learning_rate: float
    min_learning_rate: float
    weight_decay: float
    sessions_per_step: int
    slices_per_session: int
    label_smoothing: float
    class_balanced: bool
    layer_decay: float | None = None
    drop_path: float | None = None
    rank: int | None = None
    alpha: int | None = None

    def rate_at(self, epoch: float) -> float:
        """The rate after so many epochs: from 0 in a line to the peak, then half a cosine to the smallest."""
        peak = self.learning_rate * self.sessions_per_step / BATCH_OF_RATE
        if epoch < self.warmup_epochs:
            return peak * epoch / self.warmup_epochs
        done = (epoch - self.warmup_epochs) / max(self.epochs - self.warmup_epochs, 1e-9)
        return float(self.min_learning_rate + (peak - self.min_learning_rate) * (1 + np.cos(np.pi * done)) / 2)


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """One training. study: n sessions; learned, tested: bool (n,). stacks: what the network takes of them; vectors: of
    the encoder at rest. encoder: None where it stays at rest. pooling: of an AttentionPooling, within what.

    epochs: after how many it ends and is taken as it is; None: as the sessions set aside choose. number: of the fold,
    which the draws follow from. batch_size: stacks in one pass; changes nothing but memory.
    """

    study: Study
    learned: np.ndarray
    tested: np.ndarray
    stacks: Stacks
    vectors: KeptVectors
    encoder: LoadedEncoder | None
    pooling: Pooled
    tuning: Tuning
    number: int
    epochs: int | None
    batch_size: int


class Epoch(NamedTuple):
    """number: how many are done; loss: its mean; merit: of what is said of the sessions set aside, () without any."""

    number: int
    loss: float
    merit: tuple[float, ...]


@dataclass(frozen=True, slots=True, eq=False)
class TunedFold:
    """What came of a trial. result: head and what it says of the tested; pooling: as it was learned; epoch: the one
    that was taken; epochs: how they went, from 0 on; weights: what was trained of the encoder, by its name."""

    result: FoldResult
    pooling: Pooled
    epoch: int
    epochs: list[Epoch]
    weights: dict[str, np.ndarray]


def digest_of_trial(trial: Trial, *, source: str) -> str:
    """A hash of all that comes of it. source: what tells the stacks' content."""
    encoder = "" if trial.encoder is None else EncoderVectors(trial.encoder).identity
    within = within_of(trial.pooling)
    told: list[Any] = [source, encoder, asdict(trial.tuning), asdict(within), type(trial.pooling).__name__]
    told += [trial.number, trial.epochs]
    study = digest_of(trial.study, trial.vectors.vectors, trial.learned, trial.tested)
    return hashlib.sha256(json.dumps([study, told]).encode()).hexdigest()[:16]


def tune(trial: Trial, *, kept: StoragePlace, device: str) -> Iterator[Epoch | TunedFold]:
    """Train, keeping every epoch; at the end what came of it. Epochs that were kept before are not told again."""
    tuning, study = trial.tuning, trial.study
    learned, chooses = _inner_split(trial)
    begin = frozen_model(trial, learned)
    with torch.random.fork_rng():
        torch.manual_seed(int(np.random.default_rng([study.seed, trial.number]).integers(2**62)))
        network = _network(trial, begin).to(device)
    trained = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    optimiser = _adamw(trained, trial)
    loss_of = _loss(trial, learned, begin, device=device)

    state = _resume(kept, trained, optimiser)
    if state is None:
        state = _State([Epoch(0, float("nan"), _merit(network, trial, chooses))], 0, _copied(trained))
        yield state.epochs[0]
    while state.done < (tuning.epochs if trial.epochs is None else trial.epochs):
        with torch.random.fork_rng():
            loss = _pass(network, trial, learned, optimiser, loss_of, epoch=state.done)
        epoch = Epoch(state.done + 1, loss, _merit(network, trial, chooses))
        state.epochs.append(epoch)
        if epoch.merit > state.epochs[state.taken].merit or not len(chooses):
            state.taken, state.best = epoch.number, _copied(trained)
        _keep(kept, state, trained, optimiser)
        yield epoch

    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(state.best[name])
    pooling, head = network.learned()
    tested = np.flatnonzero(trial.tested)
    weights = {
        name.removeprefix("encoder."): tensor.cpu().numpy()
        for name, tensor in state.best.items()
        if name.startswith("encoder.")
    }
    result = FoldResult(head, begin.strength, tested, _said(network, trial, tested, precise=True))
    yield TunedFold(result, pooling, state.taken, state.epochs, weights)


def tuned_encoder(encoder: LoadedEncoder, tuning: Tuning, weights: dict[str, np.ndarray]) -> LoadedEncoder:
    """The encoder with what was trained of it (of a TunedFold), in plain timm weights."""
    encoder = replace(encoder, model=copy.deepcopy(encoder.model))
    if tuning.tune == "lora":
        assert tuning.rank is not None
        assert tuning.alpha is not None
        adapters.adapt(encoder.model, rank=tuning.rank, alpha=tuning.alpha)
    found = {name: torch.tensor(array) for name, array in weights.items()}
    unknown = encoder.model.load_state_dict(found, strict=False).unexpected_keys
    assert not unknown, unknown
    if tuning.tune == "lora":
        adapters.merge(encoder.model)
    return with_weights_told(encoder)


# one trial -----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _State:
    """All that going on needs. best: what was trained, as it stood after the epoch `taken`."""

    epochs: list[Epoch]
    taken: int
    best: dict[str, Tensor]

    @property
    def done(self) -> int:
        return self.epochs[-1].number


def _inner_split(trial: Trial) -> tuple[np.ndarray, np.ndarray]:
    """Sessions to learn from, and those that choose the epoch; none of these where the number of epochs is given, or
    a class has too few subjects to set some aside: then the last epoch is taken."""
    own = np.flatnonzero(trial.learned)
    if trial.epochs is not None:
        return own, own[:0]
    study = trial.study
    folds = inner_folds(
        study.learner.dealt(study.targets[own]), persons=[study.persons[n] for n in own], seed=study.seed
    )
    return (own, own[:0]) if folds is None else (own[folds != 0], own[folds == 0])


def frozen_model(trial: Trial, learned: np.ndarray) -> Begin:
    """The frozen model of these sessions."""
    study, stacks = trial.study, trial.vectors
    vectors = stacks.vectors
    centre, scale = standardisation(vectors[np.concatenate([stacks.places[n].rows for n in learned])])
    within = within_of(trial.pooling)
    pooled = np.stack([pooled_vector(within, stacks.places[n], vectors[stacks.places[n].rows]) for n in learned])
    targets = study.targets[learned]
    head, strength = fit_head(
        study.learner,
        pooled,
        targets,
        persons=[study.persons[n] for n in learned],
        strengths=study.strengths,
        seed=study.seed,
    )
    number = not isinstance(study.learner, Logistic)
    mean, deviation = (float(targets.mean()), float(targets.std()) or 1.0) if number else (0.0, 1.0)
    return Begin(head, strength, centre, scale, mean, deviation)


def pooled_vector(pooling: Pooled, places: Places, vectors: np.ndarray) -> np.ndarray:
    return pooling.pool(vectors, heights=places.heights, parts=[pooling.parts[number] for number in places.parts])


def _network(trial: Trial, begin: Begin) -> SessionNetwork:
    """On a copy of the encoder, in which adapters or stochastic depth are; what rests takes no gradient."""
    tuning, encoder = trial.tuning, trial.encoder
    if encoder is not None:
        encoder = replace(encoder, model=copy.deepcopy(encoder.model))
        if tuning.tune == "lora":
            assert tuning.rank is not None
            assert tuning.alpha is not None
            adapters.adapt(encoder.model, rank=tuning.rank, alpha=tuning.alpha)
        elif tuning.drop_path:
            _drop_paths(encoder.model, tuning.drop_path)
    return SessionNetwork(encoder, trial.pooling, begin)


def _drop_paths(model: VisionTransformer, largest: float) -> None:
    """Stochastic depth, in a line from 0 at the first block to the largest at the last."""
    blocks: list[Any] = list(model.blocks)
    for block, rate in zip(blocks, np.linspace(0, largest, len(blocks)), strict=True):
        block.drop_path1, block.drop_path2 = DropPath(float(rate)), DropPath(float(rate))


def rates(names: Sequence[str], *, depth: int, layer_decay: float) -> dict[str, float]:
    """What the rate of each parameter of a SessionNetwork is multiplied with."""
    return {
        name: depth_rate(name.removeprefix("encoder."), depth=depth, layer_decay=layer_decay)
        if name.startswith("encoder.")
        else 1.0
        for name in names
    }


def _adamw(trained: dict[str, torch.nn.Parameter], trial: Trial) -> torch.optim.AdamW:
    depth = 0 if trial.encoder is None else len(trial.encoder.model.blocks)
    multiplied = rates(list(trained), depth=depth, layer_decay=trial.tuning.layer_decay or 1.0)
    groups: dict[tuple[float, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in trained.items():
        decays = parameter.ndim > 1 and name.removeprefix("encoder.") not in UNDECAYED
        groups.setdefault((multiplied[name], decays), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": members, "times": times, "weight_decay": trial.tuning.weight_decay * decays}
            for (times, decays), members in groups.items()
        ]
    )


Loss = Callable[[Tensor, np.ndarray], Tensor]


def _loss(trial: Trial, learned: np.ndarray, begin: Begin, *, device: str) -> Loss:
    """Of logits (S, K) and the sessions that they are of: the sum over them, each weighing 1 in the mean."""
    study, tuning = trial.study, trial.tuning
    learner = study.learner
    if not isinstance(learner, Logistic):
        numbers = torch.tensor((study.targets - begin.mean) / begin.deviation, dtype=torch.float32, device=device)
        return lambda logits, sessions: F.huber_loss(logits[:, 0], numbers[sessions], reduction="sum")
    classes = torch.tensor(study.targets, device=device)
    counts = np.bincount(study.targets[learned], minlength=learner.class_count)
    weights = len(learned) / (learner.class_count * counts) if tuning.class_balanced else np.ones(len(counts))
    of_class = torch.tensor(weights, dtype=torch.float32, device=device)

    def cross_entropy(logits: Tensor, sessions: np.ndarray) -> Tensor:
        own = classes[sessions]
        losses = F.cross_entropy(logits, own, label_smoothing=tuning.label_smoothing, reduction="none")
        return (losses * of_class[own]).sum()

    return cross_entropy


# an epoch ------------------------------------------------------------------------------------------------------------


def _pass(
    network: SessionNetwork,
    trial: Trial,
    learned: np.ndarray,
    optimiser: torch.optim.AdamW,
    loss_of: Loss,
    *,
    epoch: int,
) -> float:
    """One pass over the sessions; the mean loss. epoch: how many there were before."""
    tuning, device = trial.tuning, network.head.weight.device
    random = np.random.default_rng([trial.study.seed, trial.number, epoch + 1])
    steps = np.array_split(random.permutation(learned), max(1, round(len(learned) / tuning.sessions_per_step)))
    at_once = max(1, trial.batch_size // tuning.slices_per_session)  # sessions in one pass: gradients add up exactly
    network.train()
    total = 0.0
    for step, sessions in enumerate(steps):
        torch.manual_seed(int(random.integers(2**62)))  # of stochastic depth
        rate = tuning.rate_at(epoch + step / len(steps))
        for group in optimiser.param_groups:
            group["lr"] = rate * group["times"]
        optimiser.zero_grad(set_to_none=True)
        few = [sessions[at : at + at_once] for at in range(0, len(sessions), at_once)]
        chosen = [
            [drawn(trial.stacks.places[n], count=tuning.slices_per_session, random=random) for n in own] for own in few
        ]
        for own, places, stacks in zip(few, chosen, _read_ahead(trial.stacks, chosen), strict=True):
            with _fast(device):
                logits = network(stacks, place_of(places, device), len(own))
            loss = loss_of(logits.float(), own) / len(sessions)
            loss.backward()
            total += loss.item() * len(sessions)
        optimiser.step()
    return total / len(learned)


def _read_ahead(stacks: Stacks, chosen: list[list[Places]]) -> Iterator[Tensor]:
    """The stacks of each batch; the next one is read while one is used."""
    with ThreadPoolExecutor(1) as reader:
        reads = [reader.submit(stacks.read, np.concatenate([each.rows for each in places])) for places in chosen[:1]]
        for number in range(len(chosen)):
            if number + 1 < len(chosen):
                rows = np.concatenate([each.rows for each in chosen[number + 1]])
                reads.append(reader.submit(stacks.read, rows))
            yield reads.pop(0).result()


def place_of(places: Sequence[Places], device: torch.device) -> Place:
    session = np.repeat(np.arange(len(places)), [len(each.rows) for each in places])
    heights, parts = (np.concatenate([getattr(each, name) for each in places]) for name in ("heights", "parts"))
    return Place(*(torch.from_numpy(column).to(device) for column in (session, heights, parts)))


def _fast(device: torch.device) -> AbstractContextManager[Any]:
    """bfloat16 where the device has it: matrix products alone, weights stay float32."""
    wanted = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=wanted)


def _merit(network: SessionNetwork, trial: Trial, chooses: np.ndarray) -> tuple[float, ...]:
    """How good what it says of the sessions set aside is; () where there are none."""
    if not len(chooses):
        return ()
    said = _said(network, trial, chooses, precise=False)
    return trial.study.learner.merit(trial.study.targets[chooses], said, np.zeros(len(chooses), dtype=np.int64))


def _said(network: SessionNetwork, trial: Trial, sessions: np.ndarray, *, precise: bool) -> np.ndarray:
    """What the network says of all slices of these sessions, float64 (s, K), by the head and the pooling that are
    used without it. precise: as inference computes, else as training does."""
    device = network.head.weight.device
    pooling, head = network.learned()
    network.eval()
    pooled = []
    for n in sessions:
        places = trial.stacks.places[n]
        vectors = []
        with torch.no_grad(), _fast(torch.device("cpu") if precise else device):
            for at in range(0, len(places.rows), trial.batch_size):
                vectors.append(network.vectors(trial.stacks.read(places.rows[at : at + trial.batch_size])).cpu())
        pooled.append(pooled_vector(pooling, places, torch.cat(vectors).float().numpy()))
    return trial.study.learner.say(head, np.stack(pooled))


# keeping -------------------------------------------------------------------------------------------------------------


_EPOCH = re.compile(r"epoch-([0-9]+)\.safetensors")
_MOMENTS = ("exp_avg", "exp_avg_sq")


def _copied(trained: dict[str, torch.nn.Parameter]) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in trained.items()}


def _kept_epochs(kept: StoragePlace) -> list[int]:
    return sorted(int(found.group(1)) for name in kept.names() if (found := _EPOCH.fullmatch(name)))


def _file(kept: StoragePlace, number: int) -> StoragePlace:
    return kept / f"epoch-{number}.safetensors"


def _keep(
    kept: StoragePlace, state: _State, trained: dict[str, torch.nn.Parameter], optimiser: torch.optim.AdamW
) -> None:
    """Write the last epoch; those before it go once it stands."""
    tensors = {f"best.{name}": tensor for name, tensor in state.best.items()}
    for name, parameter in trained.items():
        tensors[f"now.{name}"] = parameter.detach()
        tensors |= {f"{moment}.{name}": optimiser.state[parameter][moment] for moment in _MOMENTS}
    steps = {name: float(optimiser.state[parameter]["step"]) for name, parameter in trained.items()}
    told = {"epochs": _told(state.epochs), "taken": state.taken, "steps": steps}
    plain = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    _file(kept, state.done).write(safetensors.torch.save(plain, metadata={"state": json.dumps(told)}))
    for number in _kept_epochs(kept):
        if number < state.done:
            _file(kept, number).delete()


def _resume(kept: StoragePlace, trained: dict[str, torch.nn.Parameter], optimiser: torch.optim.AdamW) -> _State | None:
    """The last epoch that was kept, put back into what is trained and its optimiser; None where there is none."""
    numbers = _kept_epochs(kept)
    if not numbers:
        return None
    data = _file(kept, numbers[-1]).read()
    told, tensors = json.loads(header_of(data).metadata["state"]), safetensors.torch.load(data)
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(tensors[f"now.{name}"])
            own = {moment: tensors[f"{moment}.{name}"].to(parameter.device) for moment in _MOMENTS}
            optimiser.state[parameter] = {"step": torch.tensor(told["steps"][name]), **own}
    best = {name: tensors[f"best.{name}"].to(parameter.device) for name, parameter in trained.items()}
    return _State(_untold(told["epochs"]), told["taken"], best)


def forget_epochs(kept: StoragePlace) -> None:
    """Delete what `tune` has kept, once what came of it stands elsewhere."""
    for number in _kept_epochs(kept):
        _file(kept, number).delete()


def dump_tuned(fold: TunedFold) -> bytes:
    tensors = {**fold.result.head.tensors("head."), "tested": fold.result.tested, "said": fold.result.said}
    tensors |= {f"weights.{name}": array for name, array in fold.weights.items()}
    told = {"strength": fold.result.strength, "epoch": fold.epoch, "epochs": _told(fold.epochs)}
    told |= {"pooling": asdict(within_of(fold.pooling)), "attends": isinstance(fold.pooling, AttentionPooling)}
    if isinstance(fold.pooling, AttentionPooling):
        tensors |= fold.pooling.maps[0].tensors("map.")
    return safetensors.numpy.save(tensors, metadata={"told": json.dumps(told)})


def load_tuned(data: bytes) -> TunedFold:
    tensors, told = safetensors.numpy.load(data), json.loads(header_of(data).metadata["told"])
    within = Pooling(told["pooling"]["bands"], tuple(told["pooling"]["parts"]))
    pooling: Pooled = within
    if told["attends"]:
        pooling = AttentionPooling((AttentionMap.from_tensors(tensors, "map."),), within)
    head = LinearHead.from_tensors(tensors, "head.")
    weights = {name.removeprefix("weights."): array for name, array in tensors.items() if name.startswith("weights.")}
    result = FoldResult(head, told["strength"], tensors["tested"], tensors["said"])
    return TunedFold(result, pooling, told["epoch"], _untold(told["epochs"]), weights)


def _told(epochs: Sequence[Epoch]) -> list[list[Any]]:
    return [[each.number, None if np.isnan(each.loss) else each.loss, list(each.merit)] for each in epochs]


def _untold(told: Sequence[Sequence[Any]]) -> list[Epoch]:
    return [Epoch(number, float("nan") if loss is None else loss, tuple(merit)) for number, loss, merit in told]
