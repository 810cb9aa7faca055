"""An owner's models: ONNX files to plans and weights, their registry on disk, and inputs to tensors.

    onnx_import   a file or bytes -> ImportedModel: the public plan and the secret weights
                  (graph and shapes read and check the file, lowering and windows make the plan)
    float_run     the plan in plain float64
    calibration   whether a model fits the fixed-point range, by how much
    torch_export  a torch module -> ONNX bytes
    preprocess    .npy, .json or an image -> the service's tensor
    service_files the labels and preprocessing files of a service
    registry      models.db and weight files (weights_file) in the home
    adding        all that `finode models add` does

Nothing here is on the network. onnx, Pillow and torch are heavy: registry and preprocess, which the daemon needs, do
without them until an image comes.
"""
