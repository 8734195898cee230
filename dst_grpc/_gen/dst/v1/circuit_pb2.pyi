from dst_grpc._gen.dst.v1 import config_pb2 as _config_pb2
from dst_grpc._gen.dst.v1 import explain_pb2 as _explain_pb2
from dst_grpc._gen.dst.v1 import inference_pb2 as _inference_pb2
from dst_grpc._gen.dst.v1 import intervention_pb2 as _intervention_pb2
from dst_grpc._gen.dst.v1 import pairs_pb2 as _pairs_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CircuitSelection(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CIRCUIT_SELECTION_UNSPECIFIED: _ClassVar[CircuitSelection]
    CIRCUIT_SELECTION_ABSOLUTE: _ClassVar[CircuitSelection]
    CIRCUIT_SELECTION_SIGNED: _ClassVar[CircuitSelection]
    CIRCUIT_SELECTION_GREEDY: _ClassVar[CircuitSelection]

class CircuitStage(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CIRCUIT_STAGE_UNSPECIFIED: _ClassVar[CircuitStage]
    CIRCUIT_STAGE_SCORES: _ClassVar[CircuitStage]
    CIRCUIT_STAGE_EVALUATION: _ClassVar[CircuitStage]
    CIRCUIT_STAGE_SEARCH: _ClassVar[CircuitStage]

class CircuitKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CIRCUIT_KIND_UNSPECIFIED: _ClassVar[CircuitKind]
    CIRCUIT_KIND_WHOLE: _ClassVar[CircuitKind]
    CIRCUIT_KIND_EMPTY: _ClassVar[CircuitKind]
    CIRCUIT_KIND_GIVEN: _ClassVar[CircuitKind]
    CIRCUIT_KIND_CURVE: _ClassVar[CircuitKind]
    CIRCUIT_KIND_ACDC: _ClassVar[CircuitKind]
CIRCUIT_SELECTION_UNSPECIFIED: CircuitSelection
CIRCUIT_SELECTION_ABSOLUTE: CircuitSelection
CIRCUIT_SELECTION_SIGNED: CircuitSelection
CIRCUIT_SELECTION_GREEDY: CircuitSelection
CIRCUIT_STAGE_UNSPECIFIED: CircuitStage
CIRCUIT_STAGE_SCORES: CircuitStage
CIRCUIT_STAGE_EVALUATION: CircuitStage
CIRCUIT_STAGE_SEARCH: CircuitStage
CIRCUIT_KIND_UNSPECIFIED: CircuitKind
CIRCUIT_KIND_WHOLE: CircuitKind
CIRCUIT_KIND_EMPTY: CircuitKind
CIRCUIT_KIND_GIVEN: CircuitKind
CIRCUIT_KIND_CURVE: CircuitKind
CIRCUIT_KIND_ACDC: CircuitKind

class KeptCircuit(_message.Message):
    __slots__ = ("edges", "nodes")
    EDGES_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    edges: _containers.RepeatedScalarFieldContainer[str]
    nodes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, edges: _Optional[_Iterable[str]] = ..., nodes: _Optional[_Iterable[str]] = ...) -> None: ...

class CircuitCurve(_message.Message):
    __slots__ = ("scores", "scores_orientation", "selection", "fractions", "wanted_faithfulness", "steps", "with_scores")
    SCORES_FIELD_NUMBER: _ClassVar[int]
    SCORES_ORIENTATION_FIELD_NUMBER: _ClassVar[int]
    SELECTION_FIELD_NUMBER: _ClassVar[int]
    FRACTIONS_FIELD_NUMBER: _ClassVar[int]
    WANTED_FAITHFULNESS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    WITH_SCORES_FIELD_NUMBER: _ClassVar[int]
    scores: _intervention_pb2.RequestTensor
    scores_orientation: _pairs_pb2.Orientation
    selection: CircuitSelection
    fractions: _containers.RepeatedScalarFieldContainer[float]
    wanted_faithfulness: float
    steps: int
    with_scores: bool
    def __init__(self, scores: _Optional[_Union[_intervention_pb2.RequestTensor, _Mapping]] = ..., scores_orientation: _Optional[_Union[_pairs_pb2.Orientation, str]] = ..., selection: _Optional[_Union[CircuitSelection, str]] = ..., fractions: _Optional[_Iterable[float]] = ..., wanted_faithfulness: _Optional[float] = ..., steps: _Optional[int] = ..., with_scores: bool = ...) -> None: ...

class AcdcSearch(_message.Message):
    __slots__ = ("threshold", "of_metric", "absolute")
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    OF_METRIC_FIELD_NUMBER: _ClassVar[int]
    ABSOLUTE_FIELD_NUMBER: _ClassVar[int]
    threshold: float
    of_metric: bool
    absolute: bool
    def __init__(self, threshold: _Optional[float] = ..., of_metric: bool = ..., absolute: bool = ...) -> None: ...

class CircuitRequest(_message.Message):
    __slots__ = ("request_id", "model", "pairs", "loss_fn_config", "autoencoders", "orientation", "alternative", "reference", "prune", "circuits", "curve", "acdc", "ablation_specs", "latents")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PAIRS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FN_CONFIG_FIELD_NUMBER: _ClassVar[int]
    AUTOENCODERS_FIELD_NUMBER: _ClassVar[int]
    ORIENTATION_FIELD_NUMBER: _ClassVar[int]
    ALTERNATIVE_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    PRUNE_FIELD_NUMBER: _ClassVar[int]
    CIRCUITS_FIELD_NUMBER: _ClassVar[int]
    CURVE_FIELD_NUMBER: _ClassVar[int]
    ACDC_FIELD_NUMBER: _ClassVar[int]
    ABLATION_SPECS_FIELD_NUMBER: _ClassVar[int]
    LATENTS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model: str
    pairs: _containers.RepeatedCompositeFieldContainer[_pairs_pb2.PromptPair]
    loss_fn_config: _config_pb2.LossFnConfig
    autoencoders: _containers.RepeatedScalarFieldContainer[str]
    orientation: _pairs_pb2.Orientation
    alternative: _pairs_pb2.Alternative
    reference: _containers.RepeatedCompositeFieldContainer[_inference_pb2.Prompt]
    prune: bool
    circuits: _containers.RepeatedCompositeFieldContainer[KeptCircuit]
    curve: CircuitCurve
    acdc: AcdcSearch
    ablation_specs: _containers.RepeatedCompositeFieldContainer[_config_pb2.AblationSpec]
    latents: bool
    def __init__(self, request_id: _Optional[str] = ..., model: _Optional[str] = ..., pairs: _Optional[_Iterable[_Union[_pairs_pb2.PromptPair, _Mapping]]] = ..., loss_fn_config: _Optional[_Union[_config_pb2.LossFnConfig, _Mapping]] = ..., autoencoders: _Optional[_Iterable[str]] = ..., orientation: _Optional[_Union[_pairs_pb2.Orientation, str]] = ..., alternative: _Optional[_Union[_pairs_pb2.Alternative, str]] = ..., reference: _Optional[_Iterable[_Union[_inference_pb2.Prompt, _Mapping]]] = ..., prune: bool = ..., circuits: _Optional[_Iterable[_Union[KeptCircuit, _Mapping]]] = ..., curve: _Optional[_Union[CircuitCurve, _Mapping]] = ..., acdc: _Optional[_Union[AcdcSearch, _Mapping]] = ..., ablation_specs: _Optional[_Iterable[_Union[_config_pb2.AblationSpec, _Mapping]]] = ..., latents: bool = ...) -> None: ...

class CircuitParts(_message.Message):
    __slots__ = ("autoencoder", "name", "first_node", "latent_count", "has_error")
    AUTOENCODER_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    FIRST_NODE_FIELD_NUMBER: _ClassVar[int]
    LATENT_COUNT_FIELD_NUMBER: _ClassVar[int]
    HAS_ERROR_FIELD_NUMBER: _ClassVar[int]
    autoencoder: str
    name: str
    first_node: int
    latent_count: int
    has_error: bool
    def __init__(self, autoencoder: _Optional[str] = ..., name: _Optional[str] = ..., first_node: _Optional[int] = ..., latent_count: _Optional[int] = ..., has_error: bool = ...) -> None: ...

class CircuitHeader(_message.Message):
    __slots__ = ("model", "sources", "readers", "edge_count", "d_model", "pair_count", "orientation", "alternative", "prune", "node_count", "parts")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    READERS_FIELD_NUMBER: _ClassVar[int]
    EDGE_COUNT_FIELD_NUMBER: _ClassVar[int]
    D_MODEL_FIELD_NUMBER: _ClassVar[int]
    PAIR_COUNT_FIELD_NUMBER: _ClassVar[int]
    ORIENTATION_FIELD_NUMBER: _ClassVar[int]
    ALTERNATIVE_FIELD_NUMBER: _ClassVar[int]
    PRUNE_FIELD_NUMBER: _ClassVar[int]
    NODE_COUNT_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    model: str
    sources: _containers.RepeatedScalarFieldContainer[str]
    readers: _containers.RepeatedScalarFieldContainer[str]
    edge_count: int
    d_model: int
    pair_count: int
    orientation: _pairs_pb2.Orientation
    alternative: _pairs_pb2.Alternative
    prune: bool
    node_count: int
    parts: _containers.RepeatedCompositeFieldContainer[CircuitParts]
    def __init__(self, model: _Optional[str] = ..., sources: _Optional[_Iterable[str]] = ..., readers: _Optional[_Iterable[str]] = ..., edge_count: _Optional[int] = ..., d_model: _Optional[int] = ..., pair_count: _Optional[int] = ..., orientation: _Optional[_Union[_pairs_pb2.Orientation, str]] = ..., alternative: _Optional[_Union[_pairs_pb2.Alternative, str]] = ..., prune: bool = ..., node_count: _Optional[int] = ..., parts: _Optional[_Iterable[_Union[CircuitParts, _Mapping]]] = ...) -> None: ...

class CircuitProgress(_message.Message):
    __slots__ = ("stage", "done", "total", "kept_edge_count", "metric")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    KEPT_EDGE_COUNT_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    stage: CircuitStage
    done: int
    total: int
    kept_edge_count: int
    metric: float
    def __init__(self, stage: _Optional[_Union[CircuitStage, str]] = ..., done: _Optional[int] = ..., total: _Optional[int] = ..., kept_edge_count: _Optional[int] = ..., metric: _Optional[float] = ...) -> None: ...

class CircuitEvaluation(_message.Message):
    __slots__ = ("kind", "index", "chosen_edge_count", "edge_count", "node_count", "metric", "metrics", "fraction", "faithfulness")
    KIND_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    CHOSEN_EDGE_COUNT_FIELD_NUMBER: _ClassVar[int]
    EDGE_COUNT_FIELD_NUMBER: _ClassVar[int]
    NODE_COUNT_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    FRACTION_FIELD_NUMBER: _ClassVar[int]
    FAITHFULNESS_FIELD_NUMBER: _ClassVar[int]
    kind: CircuitKind
    index: int
    chosen_edge_count: int
    edge_count: int
    node_count: int
    metric: float
    metrics: _containers.RepeatedScalarFieldContainer[float]
    fraction: float
    faithfulness: float
    def __init__(self, kind: _Optional[_Union[CircuitKind, str]] = ..., index: _Optional[int] = ..., chosen_edge_count: _Optional[int] = ..., edge_count: _Optional[int] = ..., node_count: _Optional[int] = ..., metric: _Optional[float] = ..., metrics: _Optional[_Iterable[float]] = ..., fraction: _Optional[float] = ..., faithfulness: _Optional[float] = ...) -> None: ...

class CurveSummary(_message.Message):
    __slots__ = ("selection", "of_nodes", "cpr", "cmd", "chosen_index")
    SELECTION_FIELD_NUMBER: _ClassVar[int]
    OF_NODES_FIELD_NUMBER: _ClassVar[int]
    CPR_FIELD_NUMBER: _ClassVar[int]
    CMD_FIELD_NUMBER: _ClassVar[int]
    CHOSEN_INDEX_FIELD_NUMBER: _ClassVar[int]
    selection: CircuitSelection
    of_nodes: bool
    cpr: float
    cmd: float
    chosen_index: int
    def __init__(self, selection: _Optional[_Union[CircuitSelection, str]] = ..., of_nodes: bool = ..., cpr: _Optional[float] = ..., cmd: _Optional[float] = ..., chosen_index: _Optional[int] = ...) -> None: ...

class CircuitEdges(_message.Message):
    __slots__ = ("sources", "readers", "scores")
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    READERS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    sources: _containers.RepeatedScalarFieldContainer[int]
    readers: _containers.RepeatedScalarFieldContainer[int]
    scores: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, sources: _Optional[_Iterable[int]] = ..., readers: _Optional[_Iterable[int]] = ..., scores: _Optional[_Iterable[float]] = ...) -> None: ...

class CircuitNodes(_message.Message):
    __slots__ = ("nodes", "scores")
    NODES_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedScalarFieldContainer[int]
    scores: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, nodes: _Optional[_Iterable[int]] = ..., scores: _Optional[_Iterable[float]] = ...) -> None: ...

class CircuitFrame(_message.Message):
    __slots__ = ("header", "progress", "evaluation", "curve", "circuit", "found", "scores", "trailer", "nodes", "node_scores", "found_nodes", "partial")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_FIELD_NUMBER: _ClassVar[int]
    CURVE_FIELD_NUMBER: _ClassVar[int]
    CIRCUIT_FIELD_NUMBER: _ClassVar[int]
    FOUND_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    TRAILER_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    NODE_SCORES_FIELD_NUMBER: _ClassVar[int]
    FOUND_NODES_FIELD_NUMBER: _ClassVar[int]
    PARTIAL_FIELD_NUMBER: _ClassVar[int]
    header: CircuitHeader
    progress: CircuitProgress
    evaluation: CircuitEvaluation
    curve: CurveSummary
    circuit: CircuitEdges
    found: CircuitEdges
    scores: CircuitEdges
    trailer: _explain_pb2.RunsTrailer
    nodes: CircuitNodes
    node_scores: CircuitNodes
    found_nodes: CircuitNodes
    partial: bool
    def __init__(self, header: _Optional[_Union[CircuitHeader, _Mapping]] = ..., progress: _Optional[_Union[CircuitProgress, _Mapping]] = ..., evaluation: _Optional[_Union[CircuitEvaluation, _Mapping]] = ..., curve: _Optional[_Union[CurveSummary, _Mapping]] = ..., circuit: _Optional[_Union[CircuitEdges, _Mapping]] = ..., found: _Optional[_Union[CircuitEdges, _Mapping]] = ..., scores: _Optional[_Union[CircuitEdges, _Mapping]] = ..., trailer: _Optional[_Union[_explain_pb2.RunsTrailer, _Mapping]] = ..., nodes: _Optional[_Union[CircuitNodes, _Mapping]] = ..., node_scores: _Optional[_Union[CircuitNodes, _Mapping]] = ..., found_nodes: _Optional[_Union[CircuitNodes, _Mapping]] = ..., partial: bool = ...) -> None: ...

class CircuitResponse(_message.Message):
    __slots__ = ("request_id", "frames")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    frames: _containers.RepeatedCompositeFieldContainer[CircuitFrame]
    def __init__(self, request_id: _Optional[str] = ..., frames: _Optional[_Iterable[_Union[CircuitFrame, _Mapping]]] = ...) -> None: ...
