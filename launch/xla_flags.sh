# shellcheck shell=bash
# Sourced by launcher.sh: named sets of compiler flags, one a chip. None is used unless it is named,
# and none has been measured with this project: time a run without first, then one with.
#
# The TPU sets and h100 are what MaxText sets for a Llama 2 7B (v4: a 22B model; tpu7x: a Llama 3.1
# 70B), without h100's --xla_dump_to. h200 is what NVIDIA's JAX images set for all of their GPUs.
# A flag that a compiler does not know ends the process at its start; a test asks the pinned ones.

_MAXTEXT=https://github.com/AI-Hypercomputer/maxtext/blob
_RECIPES=https://github.com/AI-Hypercomputer/tpu-recipes/blob

# xla_set NAME: a line with the variable and where its value is from, then the flags, one a line.
xla_set() {
  case "$1" in
    v4)
      echo "LIBTPU_INIT_ARGS $_MAXTEXT/0eccf594be65/src/maxtext/configs/tpu/v4/22b.sh"
      echo --xla_enable_async_all_gather=true
      ;;
    v5e)
      echo "LIBTPU_INIT_ARGS $_MAXTEXT/44c0cf660b3e/src/maxtext/configs/tpu/v5e/llama2_7b.sh"
      _overlap
      echo --xla_tpu_enable_data_parallel_all_reduce_opt=true
      echo --xla_tpu_data_parallel_opt_different_sized_ops=true
      ;;
    v5p)
      echo "LIBTPU_INIT_ARGS $_MAXTEXT/44c0cf660b3e/src/maxtext/configs/tpu/v5p/llama2_7b.sh"
      _overlap
      echo --xla_tpu_enable_data_parallel_all_reduce_opt=true
      echo --xla_tpu_data_parallel_opt_different_sized_ops=true
      echo --xla_tpu_megacore_fusion_allow_ags=false
      echo --xla_enable_async_collective_permute=true
      echo --xla_tpu_enable_ag_backward_pipelining=true
      ;;
    v6e)
      echo "LIBTPU_INIT_ARGS $_MAXTEXT/03347ccbf4e0/src/maxtext/configs/tpu/v6e/llama2_7b_4096.sh"
      _overlap
      echo --xla_tpu_scoped_vmem_limit_kib=98304
      ;;
    tpu7x)
      echo "LIBTPU_INIT_ARGS $_RECIPES/2785f4ba486f/training/ironwood/llama3.1-70b/8k-bf16-tpu7x-4x4x4/k8s/k8s_manifest.yaml"
      echo --xla_tpu_scoped_vmem_limit_kib=61440
      echo --xla_tpu_bf16_emission_mode=NATIVE_EMISSION
      echo --xla_tpu_enable_sparse_core_collective_offload_all_reduce=true
      echo --xla_tpu_use_single_sparse_core_for_all_gather_offload=true
      ;;
    h100)
      echo "XLA_FLAGS $_MAXTEXT/0143f0535c35/src/maxtext/configs/gpu/a3/llama_2_7b/2vm.sh"
      echo --xla_gpu_enable_latency_hiding_scheduler=true
      echo --xla_gpu_enable_triton_gemm=false
      echo --xla_gpu_enable_command_buffer=
      echo --xla_gpu_enable_highest_priority_async_stream=true
      echo --xla_gpu_all_reduce_combine_threshold_bytes=67108864
      echo --xla_gpu_all_gather_combine_threshold_bytes=134217728
      echo --xla_gpu_reduce_scatter_combine_threshold_bytes=67108864
      echo --xla_gpu_enable_pipelined_all_gather=true
      echo --xla_gpu_enable_pipelined_reduce_scatter=true
      echo --xla_gpu_enable_pipelined_all_reduce=true
      echo --xla_gpu_enable_while_loop_double_buffering=true
      echo --xla_gpu_enable_all_gather_combine_by_dim=false
      echo --xla_gpu_enable_reduce_scatter_combine_by_dim=false
      echo --xla_disable_hlo_passes=rematerialization
      ;;
    h200)
      echo "XLA_FLAGS https://docs.nvidia.com/jax-toolbox/environment-variables"
      echo --xla_gpu_enable_latency_hiding_scheduler=true
      ;;
    *) return 1 ;;
  esac
}

_overlap() {
  echo --xla_tpu_enable_async_collective_fusion=true
  echo --xla_tpu_enable_async_collective_fusion_fuse_all_gather=true
  echo --xla_tpu_enable_async_collective_fusion_multiple_steps=true
  echo --xla_tpu_overlap_compute_collective_tc=true
  echo --xla_enable_async_all_gather=true
}

# xla_environment NAME: the assignment that makes a process use the set.
xla_environment() {
  local lines
  lines="$(xla_set "$1")" || fail "--xla_flags=$1 is unknown; expected v4, v5e, v5p, v6e, tpu7x, h100 or h200"
  echo "${lines%% *}=$(sed 1d <<<"$lines" | paste -sd ' ' -)"
}
