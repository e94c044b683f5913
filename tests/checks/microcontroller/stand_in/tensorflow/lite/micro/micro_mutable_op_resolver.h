// Stands in for TensorFlow Lite Micro's header of this name, see ../c/common.h.
//
// All methods of the real class that register a builtin operator, and the one for
// compressed kernels.

#ifndef TENSORFLOW_LITE_MICRO_MICRO_MUTABLE_OP_RESOLVER_H_
#define TENSORFLOW_LITE_MICRO_MICRO_MUTABLE_OP_RESOLVER_H_

#include "tensorflow/lite/c/common.h"
#include "tensorflow/lite/micro/micro_op_resolver.h"

namespace tflite {

struct TFLMRegistration;

// In place of one function for each operator.
const TFLMRegistration& Register();

#define KERAS_SQ_ADD(METHOD) \
  TfLiteStatus METHOD(const TFLMRegistration& registration = Register());

template <unsigned int tOpCount>
class MicroMutableOpResolver : public MicroOpResolver {
 public:
  explicit MicroMutableOpResolver() {}

  TfLiteStatus AddDecode();
  TfLiteStatus AddDynamicUpdateSlice();
  TfLiteStatus AddEmbeddingLookup();
  TfLiteStatus AddResizeNearestNeighbor();
  KERAS_SQ_ADD(AddAbs)
  KERAS_SQ_ADD(AddAdd)
  KERAS_SQ_ADD(AddAddN)
  KERAS_SQ_ADD(AddArgMax)
  KERAS_SQ_ADD(AddArgMin)
  KERAS_SQ_ADD(AddAssignVariable)
  KERAS_SQ_ADD(AddAveragePool2D)
  KERAS_SQ_ADD(AddBatchMatMul)
  KERAS_SQ_ADD(AddBatchToSpaceNd)
  KERAS_SQ_ADD(AddBroadcastArgs)
  KERAS_SQ_ADD(AddBroadcastTo)
  KERAS_SQ_ADD(AddCallOnce)
  KERAS_SQ_ADD(AddCast)
  KERAS_SQ_ADD(AddCeil)
  KERAS_SQ_ADD(AddConcatenation)
  KERAS_SQ_ADD(AddConv2D)
  KERAS_SQ_ADD(AddCos)
  KERAS_SQ_ADD(AddCumSum)
  KERAS_SQ_ADD(AddDepthToSpace)
  KERAS_SQ_ADD(AddDepthwiseConv2D)
  KERAS_SQ_ADD(AddDequantize)
  KERAS_SQ_ADD(AddDiv)
  KERAS_SQ_ADD(AddElu)
  KERAS_SQ_ADD(AddEqual)
  KERAS_SQ_ADD(AddExp)
  KERAS_SQ_ADD(AddExpandDims)
  KERAS_SQ_ADD(AddFill)
  KERAS_SQ_ADD(AddFloor)
  KERAS_SQ_ADD(AddFloorDiv)
  KERAS_SQ_ADD(AddFloorMod)
  KERAS_SQ_ADD(AddFullyConnected)
  KERAS_SQ_ADD(AddGather)
  KERAS_SQ_ADD(AddGatherNd)
  KERAS_SQ_ADD(AddGreater)
  KERAS_SQ_ADD(AddGreaterEqual)
  KERAS_SQ_ADD(AddHardSwish)
  KERAS_SQ_ADD(AddIf)
  KERAS_SQ_ADD(AddL2Normalization)
  KERAS_SQ_ADD(AddL2Pool2D)
  KERAS_SQ_ADD(AddLeakyRelu)
  KERAS_SQ_ADD(AddLess)
  KERAS_SQ_ADD(AddLessEqual)
  KERAS_SQ_ADD(AddLog)
  KERAS_SQ_ADD(AddLogSoftmax)
  KERAS_SQ_ADD(AddLogicalAnd)
  KERAS_SQ_ADD(AddLogicalNot)
  KERAS_SQ_ADD(AddLogicalOr)
  KERAS_SQ_ADD(AddLogistic)
  KERAS_SQ_ADD(AddMaxPool2D)
  KERAS_SQ_ADD(AddMaximum)
  KERAS_SQ_ADD(AddMean)
  KERAS_SQ_ADD(AddMinimum)
  KERAS_SQ_ADD(AddMirrorPad)
  KERAS_SQ_ADD(AddMul)
  KERAS_SQ_ADD(AddNeg)
  KERAS_SQ_ADD(AddNotEqual)
  KERAS_SQ_ADD(AddPack)
  KERAS_SQ_ADD(AddPad)
  KERAS_SQ_ADD(AddPadV2)
  KERAS_SQ_ADD(AddPrelu)
  KERAS_SQ_ADD(AddQuantize)
  KERAS_SQ_ADD(AddReadVariable)
  KERAS_SQ_ADD(AddReduceAll)
  KERAS_SQ_ADD(AddReduceMax)
  KERAS_SQ_ADD(AddReduceMin)
  KERAS_SQ_ADD(AddRelu)
  KERAS_SQ_ADD(AddRelu6)
  KERAS_SQ_ADD(AddReshape)
  KERAS_SQ_ADD(AddResizeBilinear)
  KERAS_SQ_ADD(AddReverseV2)
  KERAS_SQ_ADD(AddRound)
  KERAS_SQ_ADD(AddRsqrt)
  KERAS_SQ_ADD(AddSelectV2)
  KERAS_SQ_ADD(AddShape)
  KERAS_SQ_ADD(AddSin)
  KERAS_SQ_ADD(AddSlice)
  KERAS_SQ_ADD(AddSoftmax)
  KERAS_SQ_ADD(AddSpaceToBatchNd)
  KERAS_SQ_ADD(AddSpaceToDepth)
  KERAS_SQ_ADD(AddSplit)
  KERAS_SQ_ADD(AddSplitV)
  KERAS_SQ_ADD(AddSqrt)
  KERAS_SQ_ADD(AddSquare)
  KERAS_SQ_ADD(AddSquaredDifference)
  KERAS_SQ_ADD(AddSqueeze)
  KERAS_SQ_ADD(AddStridedSlice)
  KERAS_SQ_ADD(AddSub)
  KERAS_SQ_ADD(AddSum)
  KERAS_SQ_ADD(AddSvdf)
  KERAS_SQ_ADD(AddTanh)
  KERAS_SQ_ADD(AddTranspose)
  KERAS_SQ_ADD(AddTransposeConv)
  KERAS_SQ_ADD(AddUnidirectionalSequenceLSTM)
  KERAS_SQ_ADD(AddUnpack)
  KERAS_SQ_ADD(AddVarHandle)
  KERAS_SQ_ADD(AddWhile)
  KERAS_SQ_ADD(AddZerosLike)
};

#undef KERAS_SQ_ADD

}  // namespace tflite

#endif  // TENSORFLOW_LITE_MICRO_MICRO_MUTABLE_OP_RESOLVER_H_
