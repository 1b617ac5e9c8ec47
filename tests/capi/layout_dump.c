/* Prints the layout of every public struct and the number of every public constant. */
#include <stddef.h>
#include <stdio.h>
#include <zbccl/moe.h>
#include <zbccl/zbccl.h>

#define STRUCT(type) printf("%s size %zu\n", #type, sizeof(type))
#define FIELD(type, field)                                                    \
  printf("%s.%s offset %zu size %zu\n", #type, #field, offsetof(type, field), \
         sizeof(((type*)0)->field))
#define CONSTANT(name) printf("%s %d\n", #name, (int)(name))

int main(void) {
  STRUCT(zbcclUniqueId);
  FIELD(zbcclUniqueId, internal);

  STRUCT(zbcclConfig_t);
  FIELD(zbcclConfig_t, size);
  FIELD(zbcclConfig_t, timeout_ms);
  FIELD(zbcclConfig_t, init_timeout_ms);
  FIELD(zbcclConfig_t, host_wait);
  FIELD(zbcclConfig_t, device);
  FIELD(zbcclConfig_t, max_blocks);
  FIELD(zbcclConfig_t, reserved);

  STRUCT(zbcclCall_t);
  FIELD(zbcclCall_t, size);
  FIELD(zbcclCall_t, stream);
  FIELD(zbcclCall_t, work);
  FIELD(zbcclCall_t, timeout_ms);
  FIELD(zbcclCall_t, max_blocks);
  FIELD(zbcclCall_t, tag);

  STRUCT(zbcclMemReport_t);
  FIELD(zbcclMemReport_t, size);
  FIELD(zbcclMemReport_t, staged_bytes);
  FIELD(zbcclMemReport_t, landing_bytes);
  FIELD(zbcclMemReport_t, metadata_bytes);
  FIELD(zbcclMemReport_t, held_bytes);
  FIELD(zbcclMemReport_t, user_bytes);
  FIELD(zbcclMemReport_t, reserved_bytes);
  FIELD(zbcclMemReport_t, direct_calls);
  FIELD(zbcclMemReport_t, staged_calls);
  FIELD(zbcclMemReport_t, attached_bytes);
  FIELD(zbcclMemReport_t, device_user_bytes);
  FIELD(zbcclMemReport_t, device_held_bytes);
  FIELD(zbcclMemReport_t, device_reserved_bytes);

  STRUCT(zbcclRmsNorm_t);
  FIELD(zbcclRmsNorm_t, size);
  FIELD(zbcclRmsNorm_t, x);
  FIELD(zbcclRmsNorm_t, residual);
  FIELD(zbcclRmsNorm_t, weight);
  FIELD(zbcclRmsNorm_t, residual_out);
  FIELD(zbcclRmsNorm_t, out);
  FIELD(zbcclRmsNorm_t, codes);
  FIELD(zbcclRmsNorm_t, scales);
  FIELD(zbcclRmsNorm_t, scales_ue8m0);
  FIELD(zbcclRmsNorm_t, tokens);
  FIELD(zbcclRmsNorm_t, hidden);
  FIELD(zbcclRmsNorm_t, scale_row_stride);
  FIELD(zbcclRmsNorm_t, scale_group_stride);
  FIELD(zbcclRmsNorm_t, type);
  FIELD(zbcclRmsNorm_t, code_form);
  FIELD(zbcclRmsNorm_t, epsilon);
  FIELD(zbcclRmsNorm_t, scale);
  FIELD(zbcclRmsNorm_t, one_plus_weight);
  FIELD(zbcclRmsNorm_t, reserved);

  STRUCT(zbcclCommStats_t);
  FIELD(zbcclCommStats_t, size);
  FIELD(zbcclCommStats_t, operations);
  FIELD(zbcclCommStats_t, failures);
  FIELD(zbcclCommStats_t, bytes);
  FIELD(zbcclCommStats_t, staged_bytes);
  FIELD(zbcclCommStats_t, landing_bytes);
  FIELD(zbcclCommStats_t, metadata_bytes);
  FIELD(zbcclCommStats_t, wait_ns);

  STRUCT(zbcclMoeConfig_t);
  FIELD(zbcclMoeConfig_t, size);
  FIELD(zbcclMoeConfig_t, num_experts);
  FIELD(zbcclMoeConfig_t, reserved);
  FIELD(zbcclMoeConfig_t, expert_ranks);

  STRUCT(zbcclMoeRouting_t);
  FIELD(zbcclMoeRouting_t, size);
  FIELD(zbcclMoeRouting_t, topk_idx);
  FIELD(zbcclMoeRouting_t, num_tokens);
  FIELD(zbcclMoeRouting_t, num_topk);
  FIELD(zbcclMoeRouting_t, idx_type);
  FIELD(zbcclMoeRouting_t, layout);
  FIELD(zbcclMoeRouting_t, alignment);
  FIELD(zbcclMoeRouting_t, capacity);
  FIELD(zbcclMoeRouting_t, recv_counts);
  FIELD(zbcclMoeRouting_t, recv_status);
  FIELD(zbcclMoeRouting_t, recv_ranges);
  FIELD(zbcclMoeRouting_t, with_dispatch);
  FIELD(zbcclMoeRouting_t, reserved);

  STRUCT(zbcclMoeInfo_t);
  FIELD(zbcclMoeInfo_t, size);
  FIELD(zbcclMoeInfo_t, rank);
  FIELD(zbcclMoeInfo_t, num_ranks);
  FIELD(zbcclMoeInfo_t, num_experts);
  FIELD(zbcclMoeInfo_t, num_local_experts);
  FIELD(zbcclMoeInfo_t, num_topk);
  FIELD(zbcclMoeInfo_t, layout);
  FIELD(zbcclMoeInfo_t, alignment);
  FIELD(zbcclMoeInfo_t, idx_type);
  FIELD(zbcclMoeInfo_t, num_tokens);
  FIELD(zbcclMoeInfo_t, capacity);
  FIELD(zbcclMoeInfo_t, num_rows);
  FIELD(zbcclMoeInfo_t, allocated_rows);
  FIELD(zbcclMoeInfo_t, needed_capacity);
  FIELD(zbcclMoeInfo_t, overflow);
  FIELD(zbcclMoeInfo_t, send_overflow);
  FIELD(zbcclMoeInfo_t, local_experts);
  FIELD(zbcclMoeInfo_t, expert_counts);
  FIELD(zbcclMoeInfo_t, expert_offsets);
  FIELD(zbcclMoeInfo_t, source_offsets);
  FIELD(zbcclMoeInfo_t, source_counts);
  FIELD(zbcclMoeInfo_t, source_begins);
  FIELD(zbcclMoeInfo_t, counts);
  FIELD(zbcclMoeInfo_t, rank_counts);

  STRUCT(zbcclMoeDispatch_t);
  FIELD(zbcclMoeDispatch_t, size);
  FIELD(zbcclMoeDispatch_t, phase);
  FIELD(zbcclMoeDispatch_t, type);
  FIELD(zbcclMoeDispatch_t, quant);
  FIELD(zbcclMoeDispatch_t, zero_padding);
  FIELD(zbcclMoeDispatch_t, hidden);
  FIELD(zbcclMoeDispatch_t, x);
  FIELD(zbcclMoeDispatch_t, x_stride);
  FIELD(zbcclMoeDispatch_t, x_scales);
  FIELD(zbcclMoeDispatch_t, x_scale_strides);
  FIELD(zbcclMoeDispatch_t, num_scales);
  FIELD(zbcclMoeDispatch_t, reserved);
  FIELD(zbcclMoeDispatch_t, recv_x);
  FIELD(zbcclMoeDispatch_t, recv_rows);
  FIELD(zbcclMoeDispatch_t, recv_x_stride);
  FIELD(zbcclMoeDispatch_t, recv_scales);
  FIELD(zbcclMoeDispatch_t, recv_scale_strides);
  FIELD(zbcclMoeDispatch_t, topk_weights);
  FIELD(zbcclMoeDispatch_t, recv_topk_idx);
  FIELD(zbcclMoeDispatch_t, recv_topk_weights);
  FIELD(zbcclMoeDispatch_t, recv_row_weights);
  FIELD(zbcclMoeDispatch_t, recv_src_idx);

  STRUCT(zbcclMoeCombine_t);
  FIELD(zbcclMoeCombine_t, size);
  FIELD(zbcclMoeCombine_t, phase);
  FIELD(zbcclMoeCombine_t, type);
  FIELD(zbcclMoeCombine_t, hidden);
  FIELD(zbcclMoeCombine_t, y);
  FIELD(zbcclMoeCombine_t, y_stride);
  FIELD(zbcclMoeCombine_t, topk_weights);
  FIELD(zbcclMoeCombine_t, bias);
  FIELD(zbcclMoeCombine_t, out);
  FIELD(zbcclMoeCombine_t, out_stride);
  FIELD(zbcclMoeCombine_t, pre_reduce);
  FIELD(zbcclMoeCombine_t, reserved);
  FIELD(zbcclMoeCombine_t, recv_topk_weights);
  FIELD(zbcclMoeCombine_t, combined_topk_weights);

  STRUCT(zbcclMoeReport_t);
  FIELD(zbcclMoeReport_t, size);
  FIELD(zbcclMoeReport_t, metadata_bytes);
  FIELD(zbcclMoeReport_t, held_bytes);
  FIELD(zbcclMoeReport_t, staged_bytes);
  FIELD(zbcclMoeReport_t, routes);
  FIELD(zbcclMoeReport_t, dispatches);
  FIELD(zbcclMoeReport_t, combines);
  FIELD(zbcclMoeReport_t, handles);
  FIELD(zbcclMoeReport_t, dispatch_blocks);
  FIELD(zbcclMoeReport_t, combine_blocks);

  CONSTANT(ZBCCL_UNIQUE_ID_BYTES);

  CONSTANT(zbcclSuccess);
  CONSTANT(zbcclInvalidArgument);
  CONSTANT(zbcclInvalidUsage);
  CONSTANT(zbcclSystemError);
  CONSTANT(zbcclCudaError);
  CONSTANT(zbcclNetworkError);
  CONSTANT(zbcclTimeout);
  CONSTANT(zbcclRemoteFailed);
  CONSTANT(zbcclAborted);
  CONSTANT(zbcclRevoked);
  CONSTANT(zbcclOutOfMemory);
  CONSTANT(zbcclUnsupported);
  CONSTANT(zbcclVersionMismatch);
  CONSTANT(zbcclInternalError);
  CONSTANT(zbcclNumResults);

  CONSTANT(zbcclFloat32);
  CONSTANT(zbcclFloat64);
  CONSTANT(zbcclFloat16);
  CONSTANT(zbcclBfloat16);
  CONSTANT(zbcclFloat8e4m3);
  CONSTANT(zbcclFloat8e5m2);
  CONSTANT(zbcclInt8);
  CONSTANT(zbcclUint8);
  CONSTANT(zbcclInt32);
  CONSTANT(zbcclUint32);
  CONSTANT(zbcclInt64);
  CONSTANT(zbcclUint64);
  CONSTANT(zbcclInt16);
  CONSTANT(zbcclUint16);
  CONSTANT(zbcclNumTypes);

  CONSTANT(zbcclSum);
  CONSTANT(zbcclProd);
  CONSTANT(zbcclMin);
  CONSTANT(zbcclMax);
  CONSTANT(zbcclAvg);
  CONSTANT(zbcclNumOps);
  CONSTANT(ZBCCL_MOE_MAX_TOPK);
  CONSTANT(ZBCCL_MOE_SCALE_GROUP);
  CONSTANT(zbcclMoeRankMajor);
  CONSTANT(zbcclMoeExpertMajor);
  CONSTANT(zbcclMoeExpertMasked);
  CONSTANT(zbcclMoeBothPhases);
  CONSTANT(zbcclMoeSendPhase);
  CONSTANT(zbcclMoeReceivePhase);
  CONSTANT(zbcclMoeQuantNone);
  CONSTANT(zbcclMoeQuantFp8);
  CONSTANT(zbcclMoeQuantFp8Pow2);
  CONSTANT(zbcclMoeQuantFp8Ue8m0);
  CONSTANT(zbcclMoeQuantInt8);
  CONSTANT(zbcclNormNoCodes);
  CONSTANT(zbcclNormTensorScale);
  CONSTANT(zbcclNormGroupScales);
  CONSTANT(zbcclNormGroupPowersOfTwo);
  CONSTANT(zbcclNumNormCodes);
  return 0;
}
