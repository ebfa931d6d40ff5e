"""Networks of packages that are no part of the test environment: name -> factory and example.

Installed by hand, each without its dependencies (most want a torchvision that is not needed here)::

    pip install --no-deps segmentation-models-pytorch monai diffusers vit-pytorch einops torch_geometric
        rtdl_revisiting_models rtdl_num_embeddings pytorch-tcn x-transformers efficientnet-pytorch
        asteroid-filterbanks perceiver-pytorch local-attention hyper-connections torch-einops-utils
        convkan xxhash loguru einx frozendict
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from public import load
from torch import Tensor, nn

Row = tuple[Callable[[], nn.Module], Any]


def made(package: str, name: str, *args: Any, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        load("torchvision")
        model: nn.Module = getattr(load(package), name)(*args, **options)
        return model

    return make


def image(size: int = 64, channels: int = 3) -> tuple[Tensor]:
    return (torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0)),)


def sequence(channels: int, length: int) -> tuple[Tensor]:
    return (torch.randn(2, channels, length, generator=torch.Generator().manual_seed(0)),)


def segmentation(name: str, encoder: str = "resnet18", size: int = 64, **options: Any) -> Row:
    options = {"encoder_weights": None, "classes": 3} | options
    return made("segmentation_models_pytorch", name, encoder, **options), image(size)


def vit(module: str, name: str, size: int = 32, **options: Any) -> Row:
    return made(f"vit_pytorch.{module}", name, num_classes=10, **options), image(size)


PLAIN: dict[str, Any] = {"image_size": 32, "patch_size": 8, "dim": 32, "depth": 2, "heads": 4, "mlp_dim": 48}
EDGES = torch.tensor([[0, 1, 2, 3, 4, 5, 0, 2], [1, 0, 3, 2, 5, 4, 2, 0]])
NODES = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))


def graph(name: str, **options: Any) -> Row:
    options = {"in_channels": 8, "hidden_channels": 16, "num_layers": 3, "out_channels": 4} | options
    return made("torch_geometric.nn", name, **options), (NODES, EDGES)


def tokens(length: int = 16) -> tuple[Tensor]:
    return (torch.randint(1, 60, (2, length), generator=torch.Generator().manual_seed(0)),)


def x_transformer(layers: str, **options: Any) -> Row:
    def make() -> nn.Module:
        package = load("x_transformers")
        inner = getattr(package, layers)(dim=32, depth=2, heads=4, attn_dim_head=8, **options)
        model: nn.Module = package.TransformerWrapper(num_tokens=60, max_seq_len=32, attn_layers=inner)
        return model

    return make, tokens()


def diffuser(name: str, example: Any, **options: Any) -> Row:
    return made("diffusers", name, **options), example


def kan_of_convolutions() -> nn.Module:
    """Splines of every input on a fixed grid, as in efficient-kan."""
    package = load("convkan")
    first, second = package.ConvKAN(3, 8, padding=1), package.ConvKAN(8, 12, padding=1)
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3)
    return nn.Sequential(first, package.LayerNorm2D(8), second, *head)


BLOCKS: dict[str, Any] = {"block_out_channels": (16, 24), "layers_per_block": 1, "norm_num_groups": 4}
NOISY: dict[str, Any] = {"sample": image(16)[0], "timestep": torch.tensor([3, 7])}
FT: dict[str, Any] = {
    "n_blocks": 2, "d_block": 32, "attention_n_heads": 4, "attention_dropout": 0.1, "ffn_d_hidden": None,
    "ffn_d_hidden_multiplier": 1.5, "ffn_dropout": 0.1, "residual_dropout": 0.0,
}  # fmt: skip

ROWS: dict[str, Row] = {
    "Unet (smp)": segmentation("Unet"),
    "UnetPlusPlus (smp)": segmentation("UnetPlusPlus"),
    "MAnet (smp)": segmentation("MAnet"),
    "Linknet (smp)": segmentation("Linknet"),
    "FPN (smp)": segmentation("FPN"),
    "PSPNet (smp)": segmentation("PSPNet"),
    "PAN (smp)": segmentation("PAN", size=128),
    "DeepLabV3Plus (smp)": segmentation("DeepLabV3Plus", size=128),
    "Unet, mobilenet_v2 (smp)": segmentation("Unet", "mobilenet_v2"),
    "UNet (monai)": (
        made("monai.networks.nets", "UNet", 2, 3, 2, (8, 16, 24), (2, 2), num_res_units=2),
        image(32),
    ),
    "BasicUNet (monai)": (made("monai.networks.nets", "BasicUNet", 2, 3, 2, (8, 8, 16, 24, 32, 8)), image(32)),
    "SegResNet (monai)": (made("monai.networks.nets", "SegResNet", 2, 8, 3, 2), image(32)),
    "AttentionUnet (monai)": (made("monai.networks.nets", "AttentionUnet", 2, 3, 2, (8, 16, 24), (2, 2)), image(32)),
    "DynUNet (monai)": (
        made("monai.networks.nets", "DynUNet", 2, 3, 2, [3, 3, 3], [1, 2, 2], [2, 2], filters=[8, 16, 24]),
        image(32),
    ),
    "VNet (monai)": (made("monai.networks.nets", "VNet", 2, 1, 2), image(32, 1)),
    "DenseNet121 (monai)": (made("monai.networks.nets", "DenseNet121", 2, 3, 4), image(64)),
    "UNETR (monai)": (
        made(
            "monai.networks.nets", "UNETR", 3, 2, (32, 32), feature_size=8, hidden_size=32, mlp_dim=48,
            num_heads=4, spatial_dims=2,
        ),
        image(32),
    ),
    "AutoEncoder (monai)": (made("monai.networks.nets", "AutoEncoder", 2, 3, 3, (8, 16), (2, 2)), image(32)),
    "VarAutoEncoder (monai)": (
        made("monai.networks.nets", "VarAutoEncoder", 2, (3, 32, 32), 3, 12, (8, 16), (2, 2)),
        image(32),
    ),
    "UNet2DModel (diffusers)": diffuser(
        "UNet2DModel", NOISY, sample_size=16, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), attention_head_dim=8, **BLOCKS,
    ),
    "UNet2DConditionModel (diffusers)": diffuser(
        "UNet2DConditionModel", {**NOISY, "encoder_hidden_states": torch.randn(2, 5, 20)}, sample_size=16,
        in_channels=3, out_channels=3, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=20, attention_head_dim=4,
        **BLOCKS,
    ),
    "AutoencoderKL (diffusers)": diffuser(
        "AutoencoderKL", image(16), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, **BLOCKS,
    ),
    "VQModel (diffusers)": diffuser(
        "VQModel", image(16), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, num_vq_embeddings=20, **BLOCKS,
    ),
    "DiTTransformer2DModel (diffusers)": diffuser(
        "DiTTransformer2DModel",
        {"hidden_states": image(8)[0], "timestep": torch.tensor([3, 7]), "class_labels": torch.tensor([1, 2])},
        num_attention_heads=4, attention_head_dim=8, in_channels=3, num_layers=2, sample_size=8,
        num_embeds_ada_norm=20,
    ),
    "ViT (vit-pytorch)": vit("vit", "ViT", **PLAIN),
    "SimpleViT (vit-pytorch)": vit("simple_vit", "SimpleViT", **PLAIN),
    "DeepViT (vit-pytorch)": vit("deepvit", "DeepViT", **PLAIN),
    "CaiT (vit-pytorch)": vit("cait", "CaiT", **PLAIN, cls_depth=2),
    "PiT (vit-pytorch)": vit("pit", "PiT", **{**PLAIN, "depth": (1, 1)}),
    "CCT (vit-pytorch)": vit(
        "cct", "CCT", img_size=32, embedding_dim=32, n_conv_layers=2, num_layers=2, num_heads=4, mlp_ratio=2.0
    ),
    "CrossViT (vit-pytorch)": vit(
        "cross_vit", "CrossViT", image_size=32, sm_dim=24, lg_dim=32, sm_patch_size=4, lg_patch_size=8, depth=1,
        sm_enc_depth=1, sm_enc_heads=4, sm_enc_mlp_dim=40, lg_enc_depth=1, lg_enc_heads=4, lg_enc_mlp_dim=48,
    ),
    "LeViT (vit-pytorch)": vit(
        "levit", "LeViT", image_size=64, stages=2, dim=(32, 48), depth=1, heads=(2, 4), mlp_mult=2, size=64
    ),
    "CvT (vit-pytorch)": vit("cvt", "CvT", size=64),
    "NesT (vit-pytorch)": vit(
        "nest", "NesT", image_size=32, patch_size=4, dim=24, heads=3, num_hierarchies=2, block_repeats=(1, 1)
    ),
    "XCiT (vit-pytorch)": vit("xcit", "XCiT", **PLAIN, cls_depth=1, local_patch_kernel_size=3),
    "GCN (torch_geometric)": graph("GCN"),
    "GraphSAGE (torch_geometric)": graph("GraphSAGE"),
    "GIN (torch_geometric)": graph("GIN"),
    "GAT (torch_geometric)": graph("GAT", heads=4),
    "EdgeCNN (torch_geometric)": graph("EdgeCNN"),
    "MLP (rtdl)": (
        made("rtdl_revisiting_models", "MLP", d_in=8, d_out=3, n_blocks=2, d_block=24, dropout=0.1),
        (torch.randn(2, 8),),
    ),
    "ResNet (rtdl)": (
        made(
            "rtdl_revisiting_models", "ResNet", d_in=8, d_out=3, n_blocks=2, d_block=24, d_hidden=None,
            d_hidden_multiplier=2.0, dropout1=0.1, dropout2=0.1,
        ),
        (torch.randn(2, 8),),
    ),
    "FTTransformer (rtdl)": (
        made("rtdl_revisiting_models", "FTTransformer", n_cont_features=6, cat_cardinalities=[3], d_out=3, **FT),
        (torch.randn(2, 6), torch.tensor([[0], [2]])),
    ),
    "TCN (pytorch-tcn)": (made("pytorch_tcn", "TCN", 4, [16, 24, 24], use_norm="weight_norm"), sequence(4, 20)),
    "TCN, skip connections (pytorch-tcn)": (
        made("pytorch_tcn", "TCN", 4, [16, 24], use_norm="layer_norm", use_skip_connections=True),
        sequence(4, 20),
    ),
    "Decoder (x-transformers)": x_transformer("Decoder"),
    "Decoder, rotary, GLU (x-transformers)": x_transformer("Decoder", rotary_pos_emb=True, ff_glu=True),
    "Encoder, ALiBi, RMSNorm (x-transformers)": x_transformer("Encoder", alibi_pos_bias=True, use_rmsnorm=True),
    "Perceiver (perceiver-pytorch)": (
        made(
            "perceiver_pytorch", "Perceiver", num_freq_bands=3, max_freq=4.0, depth=2, input_channels=3,
            input_axis=2, num_latents=6, latent_dim=32, cross_heads=1, latent_heads=4, cross_dim_head=8,
            latent_dim_head=8, num_classes=10, weight_tie_layers=False, self_per_cross_attn=1,
        ),
        (torch.randn(2, 8, 8, 3),),
    ),
    "efficientnet-b0 (efficientnet-pytorch)": (
        lambda: load("efficientnet_pytorch").EfficientNet.from_name("efficientnet-b0", num_classes=10),
        image(64),
    ),
    "KAN of convolutions (convkan)": (kan_of_convolutions, image(8)),
}  # fmt: skip
