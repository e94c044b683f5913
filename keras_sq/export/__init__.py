"""From a trained model to the file that is deployed.

`export` prepares a request, makes the file, verifies it against Keras, and writes it.
What lives here, from the top down:

- the function (`exporter.py`), its four steps (`steps.py`), the kinds of file to
  choose from (`kinds.py`), and what makes, verifies and writes each (`targets.py`);
- how the files are made (`building.py`); `micro/` for microcontrollers, `lce/` for Larq
  Compute Engine;
- `verification/`: whether the file computes what the model does, and where not;
- what passes between the steps (`request.py`), examples (`examples.py`), kernels that
  stay float (`missing_kernels.py`), what runtimes read (`runtimes.py`), the report
  (`report.py`) and errors (`errors.py`);
- `conversion/`: a model's inputs, and its float and integer files;
- `activations/`: which activations are quantized, and how a file holds them;
- `tflite/`: which constants of a file are kernels, what values they hold, which forms
  these allow and which they get, in a file that can be edited;
- `packed/` for files that are compressed until they are used;
- `inspection/` for what is in a file; the command (`__main__.py`).

Design note: **one name, two things.** `keras_sq.export(model, path)` is a call,
and this package has to be `keras_sq.export` too, for `python -m
keras_sq.export`. The package's `__init__` imports this one first and then
binds the function over it: Python sets the attribute of the parent once, when
a subpackage is first imported, and finds subpackages in `sys.modules`, not
through attributes. So `keras_sq.export(...)`, `from keras_sq.export import
ExportReport`, a later `import keras_sq.export` and `python -m` all do what they
say; `from keras_sq import export` gives the function. Rejected: a module with
`__call__`, which no type checker can see as callable; another name for the
package, which the command line would need a module of this name beside.
"""

from keras_sq.export.errors import ExportError as ExportError
from keras_sq.export.exporter import export as export
from keras_sq.export.packed.files import pack_file as pack_file
from keras_sq.export.packed.files import unpack_file as unpack_file
from keras_sq.export.report import ActivationReport as ActivationReport
from keras_sq.export.report import ExportReport as ExportReport
from keras_sq.export.report import KernelReport as KernelReport
from keras_sq.export.report import OutputError as OutputError
from keras_sq.export.report import TensorReport as TensorReport
