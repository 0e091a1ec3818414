from utils import is_true
import os
import shlex
import shutil

# What paceline's run directory holds of a test, and MLC looks for.
LOGS = (
    "mlperf_log_summary.txt",
    "mlperf_log_detail.txt",
    "mlperf_log_accuracy.json",
    "accuracy.txt",
    "user.conf",
)
MODES = {
    "performance": "performance",
    "accuracy": "accuracy",
    "compliance": "compliance",
}


def preprocess(i):

    if i['os_info']['platform'] == 'windows':
        return {'return': 1, 'error': 'paceline runs on Linux and macOS'}

    env = i['env']
    logger = i['automation'].logger

    if is_true(env.get('MLC_MLPERF_SKIP_RUN', '')):
        return {'return': 0}

    program = shutil.which(env['MLC_PACELINE_BIN'])
    if program is None:
        return {
            'return': 1,
            'error': f"""There is no program {env['MLC_PACELINE_BIN']}: install paceline, or give its place with --paceline=PATH"""}

    mode = env['MLC_MLPERF_LOADGEN_MODE']
    if mode not in MODES:
        return {
            'return': 1, 'error': f"paceline has no mode {mode}: one of {', '.join(MODES)}"}
    if not env.get('MLC_MLPERF_OUTPUT_DIR'):
        return {'return': 1, 'error': 'MLC_MLPERF_OUTPUT_DIR is not set'}

    run_dir = os.path.join(env['MLC_MLPERF_OUTPUT_DIR'], 'paceline')
    if os.path.isdir(run_dir):
        # A run that was here before is what --rerun asked to be rid of.
        shutil.rmtree(run_dir)

    cmd = get_run_cmd(env, program, MODES[mode], run_dir)
    env['MLC_PACELINE_RUN_DIR'] = run_dir
    env['MLC_RUN_CMD'] = shlex.join(cmd)
    env['MLC_MLPERF_RUN_CMD'] = env['MLC_RUN_CMD']
    logger.info(env['MLC_RUN_CMD'])

    return {'return': 0}


def get_run_cmd(env, program, mode, run_dir):

    scenario = env['MLC_MLPERF_LOADGEN_SCENARIO']
    engine = env['MLC_PACELINE_ENGINE']
    cmd = [program, 'run', '--benchmark', env['MLC_MODEL'],
           '--scenario', scenario, '--mode', mode, '--engine', engine, '--out', run_dir]

    if env.get('MLC_MLPERF_INFERENCE_VERSION', '') != '':
        version = env['MLC_MLPERF_INFERENCE_VERSION'].removesuffix('-dev')
        cmd += ['--round', f'v{version}']
    if env.get('LLAMA2_CHECKPOINT_PATH', '') != '':
        cmd += ['--model', env['LLAMA2_CHECKPOINT_PATH']]
    if env.get('MLC_DATASET_OPENORCA_PREPROCESSED_PATH', '') != '':
        cmd += ['--data', env['MLC_DATASET_OPENORCA_PREPROCESSED_PATH']]

    settings = []
    if engine in ('native', 'reference'):
        device = 'cpu' if env['MLC_MLPERF_DEVICE'] == 'cpu' else 'cuda'
        settings.append(f'engine.{engine}.device={device}')
    if env.get('MLC_MLPERF_INFERENCE_API_SERVER', '') != '':
        settings.append(
            f"engine.endpoint.urls={env['MLC_MLPERF_INFERENCE_API_SERVER']}")
    if env.get('MLC_PACELINE_BATCH_SIZE', '') != '':
        key = 'batch_size' if engine == 'reference' else 'max_live_sequences'
        settings.append(
            f"engine.{engine}.{key}={env['MLC_PACELINE_BATCH_SIZE']}")
    if env.get('MLC_MLPERF_RUN_STYLE', 'test') != 'valid':
        settings.append(
            f"run.num_samples={env.get('MLC_TEST_QUERY_COUNT', '10')}")
        settings.append('loadgen.min_duration_ms=0')
    qps = env.get(f'MLC_MLPERF_LOADGEN_{scenario.upper()}_TARGET_QPS') or env.get(
        'MLC_MLPERF_LOADGEN_TARGET_QPS')
    if qps and env.get('MLC_MLPERF_RUN_STYLE', 'test') == 'valid':
        settings.append(f'loadgen.target_qps={float(qps)}')
    for setting in settings:
        cmd += ['--set', setting]

    return cmd + shlex.split(env.get('MLC_PACELINE_EXTRA_ARGS', ''))


def postprocess(i):

    env = i['env']

    if is_true(env.get('MLC_MLPERF_SKIP_RUN', '')):
        return {'return': 0}

    mode = MODES[env['MLC_MLPERF_LOADGEN_MODE']]
    source = os.path.join(env['MLC_PACELINE_RUN_DIR'], mode)
    if not os.path.isfile(os.path.join(source, 'mlperf_log_summary.txt')):
        return {'return': 1, 'error': f"paceline left no log in {source}"}

    for name in LOGS:
        path = os.path.join(source, name)
        if os.path.isfile(path):
            shutil.copy(path, env['MLC_MLPERF_OUTPUT_DIR'])

    return {'return': 0}
