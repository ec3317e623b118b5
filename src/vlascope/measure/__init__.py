"""What the pictures mean, in numbers with their controls and intervals."""

from .action_patches import action_patches, insertion_deletion
from .association import AssociationResult, associate, association
from .attribution import cluster_channels
from .concepts import ConceptResult, concepts, rank_words
from .crossfit import Question, separability
from .findings import EpisodeSeries, Finding, LayerSeries, Row, keep, saved
from .layers import LayerAgreement, layer_agreement
from .localise import Evaluation, evaluate
from .multiple import benjamini_hochberg
from .nave import NaveResult, nave
from .nave_checks import (
    nave_layers,
    nave_sweep,
    outlier_patches,
    watermark_saturation,
    with_watermark,
)
from .overlap import OverlapResult, best_overlap, best_overlap_iou, paired_interval
from .pooling import Pooled, pool_items, pool_regions
from .probes import ProbeResult, probe, probe_arrays
from .region_probe import probe_regions
from .resample import (
    Permutation,
    Units,
    bootstrap_interval,
    bootstrap_mean,
    permutation_test,
    run_units,
    units_of,
)
from .result import Result, adjusted, cannot_say
from .scores import ari, nmi, silhouette
from .semantics import semantic_cut, semantics, word_maps
from .sensitivity import CHANGES, SensitivityResult, sensitivity
from .temporal import TemporalResult, temporal
from .trace import LayerTrace, TraceResult, compare_traces, trace
from .truth import Truth, read_truth
from .world_model import WorldModelResult, world_model

__all__ = [
    "EpisodeSeries",
    "Finding",
    "LayerSeries",
    "Row",
    "keep",
    "saved",
    "action_patches",
    "cluster_channels",
    "insertion_deletion",
    "semantic_cut",
    "semantics",
    "word_maps",
    "ConceptResult",
    "concepts",
    "rank_words",
    "Evaluation",
    "evaluate",
    "NaveResult",
    "nave",
    "nave_layers",
    "nave_sweep",
    "outlier_patches",
    "watermark_saturation",
    "with_watermark",
    "Truth",
    "read_truth",
    "CHANGES",
    "ProbeResult",
    "SensitivityResult",
    "TemporalResult",
    "WorldModelResult",
    "probe",
    "probe_arrays",
    "probe_regions",
    "sensitivity",
    "world_model",
    "AssociationResult",
    "LayerAgreement",
    "LayerTrace",
    "OverlapResult",
    "Permutation",
    "Pooled",
    "Question",
    "Result",
    "TraceResult",
    "Units",
    "adjusted",
    "ari",
    "associate",
    "association",
    "benjamini_hochberg",
    "best_overlap",
    "best_overlap_iou",
    "bootstrap_interval",
    "bootstrap_mean",
    "cannot_say",
    "compare_traces",
    "layer_agreement",
    "nmi",
    "paired_interval",
    "permutation_test",
    "pool_items",
    "pool_regions",
    "run_units",
    "separability",
    "silhouette",
    "temporal",
    "trace",
    "units_of",
]
