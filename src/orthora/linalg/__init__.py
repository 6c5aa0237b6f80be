"""Linear algebra of weight matrices: subspaces with certificates, bases, masks. Torch only."""

from orthora.linalg.bases import dct_rows as dct_rows
from orthora.linalg.bases import haar_rows as haar_rows
from orthora.linalg.masks import magnitude_threshold as magnitude_threshold
from orthora.linalg.masks import product_rows as product_rows
from orthora.linalg.masks import reconstruction as reconstruction
from orthora.linalg.masks import smallest_mask as smallest_mask
from orthora.linalg.masks import smallest_of as smallest_of
from orthora.linalg.records import decomposed as decomposed
from orthora.linalg.records import recorded as recorded
from orthora.linalg.subspace import both_subspaces as both_subspaces
from orthora.linalg.subspace import bottom_subspace as bottom_subspace
from orthora.linalg.subspace import check_matrix as check_matrix
from orthora.linalg.subspace import check_rank as check_rank
from orthora.linalg.subspace import check_weight as check_weight
from orthora.linalg.subspace import top_subspace as top_subspace
