"""Public networks with random weights, and what the width space makes of each.

    python tests/zoo.py            prints the table
    python tests/zoo.py --write    puts it into docs/networks.md
    python tests/zoo.py NAME ...   these networks alone, with the reasons for what is frozen (--write: their rows)

Inputs and configurations are small: a width space depends on a network's structure, not on its sizes.
"""

from __future__ import annotations

import argparse
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from exactness import costs_are_torchs, half_of_each, random_widths, removal
from networks import UNet, conv1d, images, vectors
from public import load
from torch import Tensor, nn
from zoo_others import ROWS

from widthsearch.space import WidthSpace, call, trace
from widthsearch.space.copies import tensors_in
from widthsearch.training.gates import Gates

WHOLE = 0.95  # coverage from which a network counts as whole: MACs that involve a searched width
PAGE = Path(__file__).parents[1] / "docs" / "networks.md"
BEGIN, END = "<!-- public networks -->", "<!-- end of public networks -->"


@dataclass(frozen=True)
class Entry:
    """A network: its factory, the input it is traced with, and whether it must be whole."""

    factory: Callable[[], nn.Module]
    example: Any
    whole: bool = True


def image(size: int = 64) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def tokens(length: int = 9) -> Tensor:
    return torch.randint(1, 60, (2, length), generator=torch.Generator().manual_seed(0))


def timm(name: str, size: int = 64, *, whole: bool = True, **options: Any) -> Entry:
    def make() -> nn.Module:
        model: nn.Module = load("timm").create_model(name, pretrained=False, num_classes=10, **options)
        return model

    return Entry(make, (image(size),), whole)


def torchvision(name: str, size: int = 64, *, whole: bool = True, **options: Any) -> Entry:
    def make() -> nn.Module:
        load("torchvision")
        model: nn.Module = getattr(load("torchvision.models"), name)(weights=None, num_classes=10, **options)
        return model

    return Entry(make, (image(size),), whole)


def hugging_face(
    kind: str, task: str, example: dict[str, Tensor] | None = None, *, whole: bool = True, **options: Any
) -> Entry:
    def make() -> nn.Module:
        package = load("transformers")
        config = getattr(package, f"{kind}Config")(**options)
        model: nn.Module = getattr(package, f"{kind}{task}")(config)
        return model

    ids: dict[str, Any] = {"input_ids": tokens(), "attention_mask": torch.ones(2, 9, dtype=torch.int64)}
    return Entry(make, ids if example is None else example, whole)


class Recurrent(nn.Module):
    """A language model of torch's own recurrent layers."""

    def __init__(self, kind: str, *, two_ways: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(60, 24)
        self.cells = getattr(nn, kind)(24, 32, 2, batch_first=True, bidirectional=two_ways)
        self.head = nn.Linear(64 if two_ways else 32, 60)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.cells(self.embed(x))[0])


WORDS: dict[str, Any] = {"vocab_size": 60}
SMALL: dict[str, Any] = {
    **WORDS,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
}
GROUPED: dict[str, Any] = {**SMALL, "num_key_value_heads": 2, "bos_token_id": 0, "eos_token_id": 0}

ZOO: dict[str, Entry] = {
    "vgg11_bn": timm("vgg11_bn"),
    "resnet18": timm("resnet18"),
    "resnet50": timm("resnet50"),
    "wide_resnet50_2": timm("wide_resnet50_2"),
    "resnext50_32x4d": timm("resnext50_32x4d"),
    "resnetv2_50": timm("resnetv2_50"),
    "seresnet18": timm("seresnet18"),
    "mobilenetv2_100": timm("mobilenetv2_100"),
    "mobilenetv3_small_100": timm("mobilenetv3_small_100"),
    "mobilenetv4_conv_small": timm("mobilenetv4_conv_small"),
    "mnasnet0_5 (torchvision)": torchvision("mnasnet0_5"),
    "efficientnet_b0": timm("efficientnet_b0"),
    "efficientnetv2_rw_t": timm("efficientnetv2_rw_t"),
    "densenet121": timm("densenet121"),
    "inception_v3": timm("inception_v3", 128),
    "googlenet (torchvision)": torchvision("googlenet", init_weights=False, aux_logits=False),
    "squeezenet1_1 (torchvision)": torchvision("squeezenet1_1", 96),
    "shufflenet_v2_x0_5 (torchvision)": torchvision("shufflenet_v2_x0_5"),
    "regnetx_002": timm("regnetx_002"),
    "regnety_004": timm("regnety_004"),
    "convnext_atto": timm("convnext_atto"),
    "convnextv2_atto": timm("convnextv2_atto"),
    "repvgg_a0": timm("repvgg_a0"),
    "mobileone_s0": timm("mobileone_s0", whole=False),
    "dla34": timm("dla34"),
    "hrnet_w18_small": timm("hrnet_w18_small"),
    "vovnet39a": timm("vovnet39a"),
    "ghostnet_100": timm("ghostnet_100"),
    "mixnet_s": timm("mixnet_s"),
    "res2net50_26w_4s": timm("res2net50_26w_4s"),
    "cspresnet50": timm("cspresnet50"),
    "starnet_s1": timm("starnet_s1", whole=False),
    "nf_regnet_b0": timm("nf_regnet_b0"),
    "poolformer_s12": timm("poolformer_s12"),
    "vit_tiny_patch16_224": timm("vit_tiny_patch16_224", img_size=64),
    "deit_tiny_patch16_224": timm("deit_tiny_patch16_224", img_size=64),
    "eva02_tiny_patch14_224": timm("eva02_tiny_patch14_224", 56, whole=False, img_size=56),
    "swin_tiny_patch4_window7_224": timm("swin_tiny_patch4_window7_224", 56, whole=False, img_size=56),
    "pvt_v2_b0": timm("pvt_v2_b0", whole=False),
    "mixer_s32_224": timm("mixer_s32_224", 96, img_size=96),
    "gmlp_s16_224": timm("gmlp_s16_224", 64, whole=False, img_size=64),
    "resmlp_12_224": timm("resmlp_12_224", 64, img_size=64),
    "xcit_nano_12_p16_224": timm("xcit_nano_12_p16_224", 64, whole=False, img_size=64),
    "levit_128s": timm("levit_128s", 224, whole=False),
    "edgenext_xx_small": timm("edgenext_xx_small", whole=False),
    "fastvit_t8": timm("fastvit_t8", whole=False),
    "efficientformerv2_s0": timm("efficientformerv2_s0", 224, whole=False),
    "coatnet_nano_rw_224": timm("coatnet_nano_rw_224", 224, whole=False),
    "maxvit_nano_rw_256": timm("maxvit_nano_rw_256", 256, whole=False),
    "cait_xxs24_224": timm("cait_xxs24_224", 64, whole=False, img_size=64),
    "bat_resnext26ts": timm("bat_resnext26ts", 256, whole=False),
    "tiny_vit_5m_224": timm("tiny_vit_5m_224", 224, whole=False),
    "repvit_m1": timm("repvit_m1", whole=False),
    "mambaout_femto": timm("mambaout_femto", whole=False),
    "U-Net (tests/networks.py)": Entry(UNet, images()),
    "Conv1d net (tests/networks.py)": Entry(conv1d, vectors(4, 16)),
    "LSTM, 2 layers": Entry(lambda: Recurrent("LSTM"), (tokens(),)),
    "GRU, 2 layers, both directions": Entry(lambda: Recurrent("GRU", two_ways=True), (tokens(),)),
    "nn.TransformerEncoder": Entry(
        lambda: nn.Sequential(
            nn.Embedding(60, 32),
            nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 48, batch_first=True), 2),
            nn.Linear(32, 60),
        ),
        (tokens(),),
    ),
    "BERT": hugging_face("Bert", "ForSequenceClassification", **SMALL),
    "RoBERTa": hugging_face("Roberta", "ForSequenceClassification", **SMALL),
    "DistilBERT": hugging_face(
        "DistilBert", "ForSequenceClassification", **WORDS, dim=32, n_heads=4, n_layers=2, hidden_dim=48
    ),
    "GPT-2": hugging_face(
        "GPT2", "LMHeadModel", **WORDS, n_embd=32, n_head=4, n_layer=2, n_positions=32, use_cache=False
    ),
    "OPT": hugging_face(
        "OPT",
        "ForCausalLM",
        **WORDS,
        hidden_size=32,
        num_attention_heads=4,
        num_hidden_layers=2,
        ffn_dim=48,
        word_embed_proj_dim=32,
        use_cache=False,
    ),  # fmt: skip
    "GPT-NeoX": hugging_face("GPTNeoX", "ForCausalLM", **SMALL, use_cache=False),
    "Llama": hugging_face("Llama", "ForCausalLM", **GROUPED, use_cache=False),
    "Qwen2": hugging_face("Qwen2", "ForCausalLM", **GROUPED, use_cache=False),
    "Qwen3": hugging_face("Qwen3", "ForCausalLM", **GROUPED, head_dim=8, use_cache=False),
    "Mistral": hugging_face("Mistral", "ForCausalLM", **GROUPED, use_cache=False),
    "Gemma": hugging_face("Gemma", "ForCausalLM", **GROUPED, head_dim=8, use_cache=False),
    "T5 encoder": hugging_face(
        "T5", "EncoderModel", **WORDS, d_model=32, num_heads=4, num_layers=2, d_ff=48, d_kv=8
    ),
    "Mixtral": hugging_face(
        "Mixtral", "ForCausalLM", **GROUPED, num_local_experts=4, whole=False, use_cache=False
    ),
    "Mamba": hugging_face(
        "Mamba",
        "ForCausalLM",
        {"input_ids": tokens()},
        whole=False,
        **WORDS,
        hidden_size=32,
        num_hidden_layers=2,
        state_size=8,
        use_cache=False,
    ),  # fmt: skip
    "wav2vec 2.0": hugging_face(
        "Wav2Vec2",
        "ForCTC",
        {"input_values": torch.randn(2, 1600)},
        whole=False,
        **{**SMALL, "vocab_size": 20},
        conv_dim=(16, 16, 16),
        conv_stride=(5, 2, 2),
        conv_kernel=(10, 3, 3),
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=4,
    ),  # fmt: skip
}

MORE_TIMM = [
    "selecsls42",
    "hardcorenas_a",
    "tinynet_e",
    "ese_vovnet19b_dw",
    "rexnet_100",
    "lcnet_050",
    "fbnetc_100",
    "spnasnet_100",
    "darknet53",
    "skresnet18",
    "resnest14d",
    "dpn48b",
    "legacy_seresnet18",
    "mobilevit_xxs",
    "repghostnet_050",
    "visformer_tiny",
    "convit_tiny",
    "deit3_small_patch16_224",
]
ZOO |= {
    name: timm(name, whole=False, **({"img_size": 64} if name.startswith("deit3") else {}))
    for name in MORE_TIMM
    if name not in ("convit_tiny", "visformer_tiny")
}
ZOO |= {name: timm(name, 224, whole=False) for name in ("convit_tiny", "visformer_tiny")}
IDS = {"input_ids": tokens(), "decoder_input_ids": tokens(7)}
PIXELS = {"pixel_values": image(32)}
ZOO |= {
    "ELECTRA": hugging_face("Electra", "ForSequenceClassification", whole=False, **SMALL, embedding_size=20),
    "ALBERT": hugging_face("Albert", "ForSequenceClassification", whole=False, **SMALL, embedding_size=20),
    "DeBERTa-v2": hugging_face("DebertaV2", "ForSequenceClassification", whole=False, **SMALL),
    "MPNet": hugging_face("MPNet", "ForSequenceClassification", whole=False, **SMALL),
    "BLOOM": hugging_face(
        "Bloom", "ForCausalLM", whole=False, **WORDS, hidden_size=32, n_head=4, n_layer=2, use_cache=False
    ),
    "Falcon": hugging_face("Falcon", "ForCausalLM", whole=False, **SMALL, use_cache=False),
    "Phi": hugging_face("Phi", "ForCausalLM", whole=False, **SMALL, use_cache=False),
    "GPT-J": hugging_face(
        "GPTJ", "ForCausalLM", whole=False, **WORDS, n_embd=32, n_head=4, n_layer=2, rotary_dim=4, use_cache=False
    ),
    "T5": hugging_face(
        "T5", "ForConditionalGeneration", IDS, whole=False, **WORDS, d_model=32, num_heads=4, num_layers=2,
        d_ff=48, d_kv=8, use_cache=False,
    ),
    "BART": hugging_face(
        "Bart", "ForConditionalGeneration", IDS, whole=False, **WORDS, d_model=32, encoder_layers=1,
        decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48,
        decoder_ffn_dim=48, use_cache=False, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    ),
    "Whisper": hugging_face(
        "Whisper", "ForConditionalGeneration",
        {"input_features": torch.randn(2, 8, 40), "decoder_input_ids": tokens(7)}, whole=False, **WORDS,
        num_mel_bins=8, max_source_positions=20, d_model=32, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48,
        use_cache=False, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    ),
    "ViT (transformers)": hugging_face(
        "ViT", "ForImageClassification", PIXELS, whole=False,
        **{k: v for k, v in SMALL.items() if k != "vocab_size"}, image_size=32, patch_size=8,
    ),
    "SegFormer": hugging_face(
        "Segformer", "ForSemanticSegmentation", {"pixel_values": image(64)}, whole=False,
        hidden_sizes=[8, 16, 24, 32], num_attention_heads=[1, 2, 2, 4], depths=[1, 1, 1, 1],
        decoder_hidden_size=24,
    ),
    "ViT-MAE": hugging_face(
        "ViTMAE", "ForPreTraining", PIXELS, whole=False,
        **{k: v for k, v in SMALL.items() if k != "vocab_size"}, image_size=32, patch_size=8,
        decoder_hidden_size=24, decoder_num_attention_heads=4, decoder_num_hidden_layers=1,
        decoder_intermediate_size=40,
    ),
}  # fmt: skip
ZOO |= {name: Entry(factory, example, whole=False) for name, (factory, example) in ROWS.items()}


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    variables: int
    coverage: float
    seconds: float  # of CPU time
    error: float  # of removing units instead of closing their gates, relative to the output
    equal: bool  # MACs and parameters of resized networks are torch's own count
    searched: bool  # seen at other widths, it is the same, and its gates make a step
    frozen: tuple[str, ...]  # the reasons, each with the number of would-be variables

    def markdown(self) -> str:
        cost = "yes" if self.equal else "**no**"
        coverage = f"{self.coverage:.1%}" if self.coverage >= WHOLE else f"**{self.coverage:.1%}**"
        return (
            f"| {self.name} | {self.variables} | {coverage} | {self.seconds:.1f} | {self.error:.0e} | {cost} | "
            f"{'yes' if self.searched else '**no**'} | "
            f"{'; '.join(self.frozen)} |"
        )


def traced(name: str) -> tuple[WidthSpace, Any, float]:
    """Build and trace a network; also its example and the CPU seconds that the trace took."""
    torch.manual_seed(0)
    entry = ZOO[name]
    model = entry.factory().eval()
    start = time.process_time()
    space = trace(model, entry.example)
    return space, entry.example, time.process_time() - start


@torch.no_grad()
def tell_units_apart(model: nn.Module) -> None:
    """Zeros (of a fresh head) would hide differences."""
    for tensor in model.parameters():
        if bool(tensor.min() == tensor.max()):
            tensor.add_(torch.randn_like(tensor), alpha=0.02)


def is_searched(space: WidthSpace, example: Any) -> bool:
    """Whether ``at()`` finds the same space at other widths, and gates there make a step."""
    there = space.at(random_widths(space, 9, least=2))
    tell_units_apart(there.model)
    gradients: list[Any] = []
    optimizer = torch.optim.SGD(there.model.parameters(), lr=0.01)
    with Gates(there).attached(gradients.append):
        outputs = [t for t in tensors_in(call(there.model.train(), example)) if t.requires_grad]
        torch.stack([t.square().mean() for t in outputs]).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return len(gradients) == 1 and bool(np.isfinite(gradients[0]).all() and gradients[0].any())


def row_of(name: str) -> Row:
    space, example, seconds = traced(name)
    tell_units_apart(space.model)
    found = removal(space, example, half_of_each(space))
    assert found.effect > 1e-3, f"{name}: removing half of its units changes nothing"
    reasons: dict[str, int] = {}
    for frozen in space.frozen:
        reason = re.sub(r"'[^']*'", "…", frozen.reason)
        reasons[reason] = reasons.get(reason, 0) + 1
    return Row(
        name=name,
        variables=len(space.widths),
        coverage=space.cost.share("macs", space.widths, space.widths),
        seconds=seconds,
        error=found.error,
        equal=costs_are_torchs(space, example),
        searched=is_searched(space, example),
        frozen=tuple(f"{count} x {reason}" for reason, count in reasons.items()),
    )


HEAD = [
    "| network | variables | coverage of MACs | trace, s | removal error | cost is torch's | at other widths | frozen |",
    "|---|---|---|---|---|---|---|---|",
]


def published() -> dict[str, str]:
    """The rows of the table in docs/networks.md, by network."""
    rows = PAGE.read_text().partition(BEGIN)[2].partition(END)[0].strip().splitlines()[2:]
    return {row.split("|")[1].strip(): row for row in rows}


def write(rows: dict[str, str]) -> None:
    """Put these rows into the table, in the place of those that it has of the same networks."""
    page, known = PAGE.read_text(), published() | rows
    text = "\n".join([*HEAD, *(known[name] for name in ZOO if name in known)])
    PAGE.write_text(f"{page.partition(BEGIN)[0]}{BEGIN}\n{text}\n{END}{page.partition(END)[2]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)  # the table says CPU seconds: threads that wait for one another would count
    for name in arguments.names or ZOO:
        try:
            row = row_of(name).markdown()
        except ImportError as error:  # its row stays as it is
            print(f"{name}: {error}", flush=True)
            continue
        print(row, flush=True)
        if arguments.write:
            write({name: row})
        if arguments.names:
            for frozen in traced(name)[0].frozen:
                print(f"   {frozen.name} ({frozen.width}): {frozen.reason}")


if __name__ == "__main__":
    main()
