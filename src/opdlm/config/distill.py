"""One conversion: geometry, method, loss, update, and where its files are."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from opdlm.config.base import Settings
from opdlm.config.decoding import LOSSLESS, Decoding, DecodingField, DynamicDecoding
from opdlm.config.divergence import DivergenceField, ForwardKL

Method = Literal["opd", "onpolicy_text", "offpolicy_kd", "sft", "lossless"]
StateSelection = Literal["one_per_block", "all", "one_per_rollout", "random_mask"]
Anchors = Literal["visited", "random", "all"]
WindowForm = Literal["mask", "noise"]
Prediction = Literal["same", "shifted"]
Context = Literal["block", "causal"]


Tracker = Literal["tensorboard", "wandb", "trackio"]


def _names_from_text(value: Any) -> Any:
    """`a,b` as the short form of ("a", "b")."""
    return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value


class LengthRamp(Settings):
    """Longest response of a rollout, growing from `start` to `end`."""

    start: int = Field(default=100, ge=1, description="tokens at the first rollout")
    end: int = Field(default=4000, ge=1, description="tokens from the last ramp rollout on")
    rollouts: int = Field(default=100, ge=0, description="rollouts until the full length; 0 starts with it")
    shape: Literal["cosine", "linear"] = Field(
        default="cosine", description="the launchers use cosine, the paper says linear"
    )

    @model_validator(mode="after")
    def _grows(self) -> "LengthRamp":
        if self.start > self.end:
            raise ValueError(f"the ramp starts at {self.start} tokens, above its end {self.end}; lower start too")
        return self


class OptimiserSettings(Settings):
    """AdamW with warm-up and cosine decay."""

    learning_rate: float = Field(default=1e-5, gt=0, le=1, description="peak learning rate")
    final_learning_rate: float = Field(default=1e-6, ge=0, le=1, description="learning rate at the last update")
    warmup_updates: int = Field(default=5, ge=0, description="updates of linear warm-up")
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    l2_sp: float = Field(
        default=0.0, ge=0, description="decoupled decay towards the AR model's weights, in place of zero (L2-SP)"
    )
    clip_norm: float = Field(default=1.0, gt=0, description="largest gradient norm")
    moments: Literal["float32", "8bit", "offload"] = Field(
        default="float32",
        description="AdamW's two moments; 8bit: a quarter of the memory, needs bitsandbytes; offload: in the CPU's "
        "memory, for a GPU",
    )

    @model_validator(mode="after")
    def _decay_shrinks(self) -> "OptimiserSettings":
        for name, decay in (("weight_decay", self.weight_decay), ("l2_sp", self.l2_sp)):
            if (share := decay * max(self.learning_rate, self.final_learning_rate)) > 1:
                raise ValueError(
                    f"{name} {decay:g} at this learning rate takes back {share:g} of a distance in one update; "
                    "lower either, so that their product is at most 1"
                )
        return self


class DistillSettings(Settings):
    """One conversion, without the places where its files are."""

    # geometry
    block_size: int = Field(default=4, ge=1, le=1024, description="tokens in a block")
    prediction: Prediction = Field(
        default="same", description="same: output i is token i; shifted: output i-1 is token i"
    )
    context: Context = Field(
        default="block", description="attention of finished text: block, or causal as in the AR model"
    )

    # what is learnt from
    method: Method = Field(default="opd", description="opd; lossless; or a control: onpolicy_text, offpolicy_kd, sft")
    states: StateSelection = Field(default="one_per_block", description="which visited states are trained on")
    prompts_per_rollout: int = Field(default=128, ge=1, le=2**20, description="prompts answered with the same weights")
    rollouts: int | None = Field(
        default=None, ge=1, le=10**9, description="number of rollouts; not set: one epoch over the prompts"
    )
    warm_start_rollouts: int = Field(
        default=0, ge=0, description="first rollouts written by the teacher, with random masks"
    )
    rollout_decoding: DecodingField = Field(default=DynamicDecoding(), description="as --decoding of generate")
    rollout_temperature: float = Field(default=1.0, ge=0, description="temperature of rollouts")
    rollout_hold_end: bool = Field(
        default=False, description="rollouts commit a stop token only where all before it is known"
    )
    rollout_batch: int = Field(default=32, ge=1, le=2**16, description="rows decoded at once")
    response_length: LengthRamp = LengthRamp()
    rollout_server: str = Field(
        default="",
        description="URL of an SGLang server that writes the rollouts: texts without commit steps (docs/export.md)",
    )
    rollout_timeout_s: float = Field(default=600.0, gt=0, le=10**6, description="with rollout_server: for each answer")

    # with method lossless
    window: int = Field(default=7, ge=1, le=64, description="with lossless: most drafts of a forward")
    window_form: WindowForm = Field(
        default="mask",
        description="with lossless: mask (learnt embeddings), or noise (random ids: stock engines take it)",
    )
    anchors: Anchors = Field(
        default="visited", description="with lossless: where the windows that are trained on begin"
    )
    gate_from: str = Field(
        default="",
        description="with lossless: go on with the gate of that lossless model, whose window, form and rank it keeps; "
        "after a fine-tune of its base, for example",
    )

    # the loss
    divergence: DivergenceField = Field(
        default=ForwardKL(), description="forward_kl, reverse_kl, jsd[:BETA], mixed_kl[:W], tv"
    )
    top_k: int | None = Field(default=None, ge=1, description="compare only the teacher's k most probable tokens")
    rest_bucket: bool = Field(
        default=True, description="with top_k: all other tokens count as one (else a partial sum)"
    )
    supervise_end: bool = Field(default=True, description="train on the end-of-sequence token")
    clean_weight: float = Field(
        default=0.0,
        ge=0,
        description="weight of the same loss where the student reads clean text from left to right, which is how "
        "decoding checked checks; 0: not trained",
    )
    normalisation: Literal["global", "per_row_mean"] = Field(
        default="global", description="mean over tokens, or over rows"
    )

    # the update
    rows_per_update: int = Field(default=8, ge=1, le=2**20, description="rollout rows in one optimiser update")
    rows_per_micro_batch: int | None = Field(
        default=None, ge=1, le=2**20, description="rows in one backward pass; none: all"
    )
    optimiser: OptimiserSettings = OptimiserSettings()
    attention: Literal["dense", "flex"] = Field(
        default="dense", description="of training passes; flex: FlexAttention, which skips what is masked (CUDA alone)"
    )
    gradient_checkpointing: bool = Field(default=False, description="trade time for memory in the student's pass")
    lora_rank: int | None = Field(
        default=None, ge=1, description="train an adapter of this rank instead of all weights"
    )
    adapter_only: bool = Field(
        default=False, description="with lora_rank: save the adapter alone, a few MB, with the name of its base"
    )
    teacher_precision: Literal["float32", "bfloat16", "4bit"] = Field(
        default="float32",
        description="the teacher's weights; 4bit: NF4 by bitsandbytes, another model's opinion",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(default="auto", description="auto: bfloat16 on a GPU")
    sharding: Literal["none", "full"] = Field(
        default="none",
        description="of several processes (torchrun, accelerate launch): none, each holds all weights; full, they "
        "share one copy of them",
    )
    seed: int = Field(default=0, ge=0, lt=2**31, description="decides the order of prompts and every random choice")

    # keeping
    save_every_rollouts: int = Field(default=10, ge=1, description="rollouts between checkpoints")
    keep_checkpoints: int = Field(default=2, ge=1, description="checkpoints kept on disk")
    keep_best: bool = Field(
        default=False, description="with eval_every: the checkpoint of the best agreement is kept too, as OUTPUT/best"
    )
    async_save: bool = Field(
        default=True,
        description="checkpoints are written beside the training, from a copy in memory; off, or where there is no "
        "room for the copy: training waits",
    )
    eval_every: int | None = Field(
        default=None, ge=1, description="rollouts between validations: agreement with the teacher, tokens per forward"
    )
    decoding: DecodingField | None = Field(
        default=None, description="how the converted model decodes by default; none: as the rollouts"
    )

    def low_precision(self, device: str) -> bool:
        """Whether matrix products are bfloat16 on a device of that type ("cpu", "cuda")."""
        return self.precision == "bfloat16" or (self.precision == "auto" and device == "cuda")

    def narrows(self, device: str) -> bool:
        """Whether frozen weights are held in bfloat16 there, where that changes no product. Not in shards, whose
        weights are of one type; nor where the student's are pulled towards them."""
        return self.low_precision(device) and self.sharding == "none" and not self.optimiser.l2_sp

    @property
    def usual_decoding(self) -> Decoding:
        """How the converted model decodes by default."""
        return self.decoding or self.rollout_decoding

    @model_validator(mode="after")
    def _consistent(self) -> "DistillSettings":
        kinds = {self.rollout_decoding.kind, self.usual_decoding.kind}
        if self.method == "lossless" and (self.lora_rank is None or not kinds <= set(LOSSLESS)):
            raise ValueError("method lossless needs lora_rank and decodings that verify; --lossless sets all of it")
        if self.method != "lossless" and kinds & set(LOSSLESS):
            raise ValueError("only a lossless conversion decodes by verified or typical; add --lossless")
        if self.rollout_decoding.kind == "checked":
            raise ValueError("rollouts by checked visit no states to train on; set another rollout_decoding")
        if self.usual_decoding.kind == "checked" and (self.prediction, self.context) != ("shifted", "causal"):
            raise ValueError(
                "decoding checked needs prediction shifted and context causal; set both, or another decoding, such as "
                "dynamic"
            )
        if self.gate_from and self.method != "lossless":
            raise ValueError("gate_from is for a lossless conversion; add --lossless, or leave it out")
        if self.method == "lossless" and self.attention == "flex":
            raise ValueError("lossless conversion attends densely; leave attention out")
        if self.clean_weight and self.method in ("sft", "lossless"):
            raise ValueError(f"method {self.method!r} has no clean_weight; leave it out")
        if self.clean_weight and (self.prediction, self.context) != ("shifted", "causal"):
            raise ValueError("clean_weight needs prediction shifted and context causal; set both, or it to 0")
        if self.method != "opd" and self.states not in ("random_mask", "one_per_block"):
            raise ValueError(f"method {self.method!r} trains on random masks; set states to random_mask")
        if self.adapter_only and self.lora_rank is None:
            raise ValueError("adapter_only needs an adapter; set lora_rank too, such as 16")
        if self.lora_rank is not None and self.optimiser.l2_sp:
            raise ValueError("an adapter has no original weights; leave out optimiser.l2_sp, or set it to 0")
        if self.teacher_precision != "float32" and (self.lora_rank is not None or self.optimiser.l2_sp):
            raise ValueError(
                "teacher_precision needs a teacher apart: an adapter's is the student's weights, and optimiser.l2_sp "
                "pulls towards the teacher's in float32; leave teacher_precision out"
            )
        if self.rows_per_update > self.prompts_per_rollout:
            raise ValueError(
                f"rows_per_update is {self.rows_per_update}, and a rollout has {self.prompts_per_rollout} prompts; set "
                f"rows_per_update to {self.prompts_per_rollout} or less, or prompts_per_rollout higher"
            )
        return self

    @model_validator(mode="after")
    def _server_can_write_it(self) -> "DistillSettings":
        if not self.rollout_server:
            return self
        if self.method == "lossless":
            if self.anchors != "all":  # "random": as many as there were forwards
                raise ValueError("a rollout_server does not say where forwards began; set anchors to all")
            return self
        if self.method == "opd":
            raise ValueError(
                "a rollout_server gives no commit steps, so no visited states; set method to onpolicy_text, which "
                "masks the same texts at random"
            )
        if self.method != "onpolicy_text":
            raise ValueError(f"method {self.method!r} has no text by the student; leave rollout_server out")
        if (self.prediction, self.context) != ("same", "block"):
            raise ValueError("a rollout_server decodes prediction same and context block alone; set both")
        if self.rollout_temperature or self.rollout_hold_end or self.rollout_decoding.kind != "dynamic":
            raise ValueError(
                "a rollout_server takes the most probable token, by a threshold; set rollout_temperature to 0, "
                "rollout_decoding to dynamic and rollout_hold_end to false"
            )
        return self


class ConvertSettings(DistillSettings):
    """`opdlm convert`: a conversion with its places."""

    model: str = Field(default="", description="folder or hub name of the autoregressive model")
    prompts: str = Field(
        default="", description=".jsonl, .json, .csv, .tsv, .txt (each also .gz) or .parquet file, or a hub data set"
    )
    prompts_column: str | None = Field(
        default=None, description="column of strings or chat messages, or several of strings: A,B; default: found"
    )
    prompts_config: str | None = Field(default=None, description="of a hub data set: its configuration")
    prompts_split: str | None = Field(default=None, description="of a hub data set: its split; default: train")
    prompts_revision: str | None = Field(default=None, description="of a hub data set: branch, tag or commit")
    responses_column: str | None = Field(default=None, description="with method sft: column of given responses")
    prompt_limit: int | None = Field(default=None, ge=1, description="use only the first prompts")
    prompt_tokens: int | None = Field(
        default=None,
        ge=1,
        description="most tokens of a prompt: the last user message loses its end, the chat template stays",
    )
    eval_prompts: str = Field(default="", description="prompts of the validations, a file or data set as prompts")
    eval_count: int | None = Field(
        default=None, ge=1, description="only the first eval_prompts; with none: the last prompts, kept from training"
    )
    output: str = Field(default="", description="folder of the run; must be new or empty")
    recipe: str | None = Field(
        default=None,
        description="gives the defaults: small, standard, standard-large (by the size of the model), paper-small, "
        "paper-large, one of docs/recipes.md such as qwen3-4b or one-gpu-lora, or a .toml file",
    )
    push_to_hub: str = Field(default="", description="USER/NAME: upload the model to the hub at the end")
    hub_private: bool = Field(default=False, description="with push_to_hub: make the repository private, if it is new")
    tracker: Annotated[tuple[Tracker, ...], BeforeValidator(_names_from_text)] = Field(
        default=(), description="tensorboard, wandb or trackio, several divided by commas"
    )
    report_every: int | None = Field(
        default=None, ge=1, description="rollouts between refreshes of OUTPUT/report.html; not set: none is written"
    )
    trust_remote_code: bool = Field(
        default=False, description="run code that comes with the model, with your rights; off: none runs"
    )
    device: str = Field(default="auto", description="cpu, cuda, mps, or auto")
    threads: int | None = Field(
        default=None, ge=1, le=1024, description="CPU threads; default: the cores that are free at the start"
    )

    @model_validator(mode="after")
    def _parts_are_of_a_data_set(self) -> "ConvertSettings":
        for name in ("prompts_config", "prompts_split", "prompts_revision"):
            if getattr(self, name) is not None and not self.prompts:
                raise ValueError(f"{name} is for a data set of the hub; name it with prompts, or leave {name} out")
        return self

    @model_validator(mode="after")
    def _shared_weights_have_all_bits(self) -> "ConvertSettings":
        if self.sharding == "full" and (self.optimiser.moments != "float32" or self.teacher_precision == "4bit"):
            raise ValueError(
                "sharding full shares neither 8-bit or offloaded moments nor a 4-bit teacher; leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _responses_are_used(self) -> "ConvertSettings":
        if self.responses_column is not None and (self.method != "sft" or not self.prompts):
            raise ValueError("responses_column is for method sft with a prompts file; leave it out, or set both")
        return self

    @model_validator(mode="after")
    def _validates_on_something(self) -> "ConvertSettings":
        if self.eval_every is not None and not (self.eval_prompts or self.eval_count):
            raise ValueError(
                "eval_every needs prompts that are not trained on; name a file with eval_prompts, or keep some with "
                "eval_count, such as 16"
            )
        if self.keep_best and self.eval_every is None:
            raise ValueError("keep_best needs validations to compare; set eval_every too, such as 10")
        return self
