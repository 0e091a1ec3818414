"""A stand-in for NVIDIA's driver library, compiled, so that the real door opens on it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support import Outcome

# A flag is a number that -D sets: how this machine differs from two well H200.
SOURCE = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifndef CARDS
#define CARDS 2
#endif
#ifndef NAME
#define NAME "NVIDIA H200"
#endif
#ifndef BYTES
#define BYTES 150754820096ULL
#endif
#ifndef DRIVER
#define DRIVER "580.1"
#endif
#ifndef THROTTLE
#define THROTTLE 0
#endif
#ifndef BUSY_PID
#define BUSY_PID 0
#endif
#ifndef HELD
#define HELD 500000000ULL
#endif
#ifndef ERRORS
#define ERRORS 0
#endif
#ifndef ROW_PENDING
#define ROW_PENDING 0
#endif
#ifndef ROW_LOST
#define ROW_LOST 0
#endif
#ifndef DRAW_MW
#define DRAW_MW 76000
#endif
#ifndef MAY_SET
#define MAY_SET 0
#endif
#ifndef LIMIT_MW
#define LIMIT_MW 700000
#endif
#ifndef WIDTH
#define WIDTH 16
#endif
#ifndef LINKS_UP
#define LINKS_UP 18
#endif
#ifndef LINKS_ELSE
#define LINKS_ELSE 18
#endif
#ifndef SPLIT
#define SPLIT 0
#endif
#ifndef ECC
#define ECC 1
#endif
typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned pid; unsigned long long used; unsigned gi, ci; } process_t;
/* What is wrong is wrong with the last card only. */
static int is_ill(void *d) { return (long)d == CARDS; }
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = CARDS; return 0; }
int nvmlSystemGetDriverVersion(char *s, unsigned n) { strncpy(s, DRIVER, n); return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **d) { *d = (void *)(long)(i + 1); return 0; }
int nvmlDeviceGetName(void *d, char *s, unsigned n) { strncpy(s, NAME, n); return 0; }
int nvmlDeviceGetUUID(void *d, char *s, unsigned n) {
  strncpy(s, "GPU-0aaa", n); s[4] = '0' + (char)(long)d; return 0; }
int nvmlDeviceGetMemoryInfo(void *d, memory_t *m) {
  m->total = BYTES; m->used = is_ill(d) ? HELD : 500000000ULL; m->free = m->total - m->used;
  return 0; }
int nvmlDeviceGetMaxPcieLinkGeneration(void *d, unsigned *v) { *v = 5; return 0; }
int nvmlDeviceGetMaxPcieLinkWidth(void *d, unsigned *v) { *v = 16; return 0; }
int nvmlDeviceGetMaxClockInfo(void *d, int type, unsigned *v) { *v = 1980 * type; return 0; }
int nvmlDeviceGetMemoryBusWidth(void *d, unsigned *v) { *v = 6144; return 0; }
int nvmlDeviceGetNvLinkState(void *d, unsigned link, unsigned *v) {
  *v = link < (is_ill(d) ? LINKS_UP : LINKS_ELSE); return 0; }
int nvmlDeviceGetEccMode(void *d, unsigned *now, unsigned *then) {
  *now = *then = is_ill(d) ? ECC : 1; return 0; }
#ifndef OLD
int nvmlDeviceGetComputeRunningProcesses_v3(void *d, unsigned *n, process_t *p) {
  *n = is_ill(d) && BUSY_PID ? 1 : 0; if (*n) p[0].pid = BUSY_PID; return 0; }
int nvmlDeviceGetClockInfo(void *d, int type, unsigned *v) {
  *v = is_ill(d) && THROTTLE ? 900 : 1980; return 0; }
int nvmlDeviceGetCurrentClocksThrottleReasons(void *d, unsigned long long *v) {
  *v = is_ill(d) && THROTTLE ? THROTTLE : 1; return 0; }
int nvmlDeviceGetTemperature(void *d, int sensor, unsigned *v) { *v = 41; return 0; }
/* A limit that was set is kept in a file, as the card keeps it, for every process to see. */
static void limit_path(void *d, char *s, unsigned n) {
  const char *folder = getenv("STUB_LIMITS");
  snprintf(s, n, "%s/limit-%ld", folder ? folder : "/nonexistent", (long)d - 1); }
static unsigned limit_of(void *d) {
  char path[512]; unsigned value = is_ill(d) ? LIMIT_MW : 700000; FILE *file;
  limit_path(d, path, sizeof path); file = fopen(path, "r");
  if (file) { if (fscanf(file, "%u", &value) != 1) value = 0; fclose(file); }
  return value; }
int nvmlDeviceGetPowerUsage(void *d, unsigned *v) {
  unsigned limit = limit_of(d); *v = DRAW_MW < limit ? DRAW_MW : limit; return 0; }
int nvmlDeviceGetEnforcedPowerLimit(void *d, unsigned *v) { *v = limit_of(d); return 0; }
int nvmlDeviceGetPowerManagementLimit(void *d, unsigned *v) { *v = limit_of(d); return 0; }
int nvmlDeviceGetPowerManagementLimitConstraints(void *d, unsigned *least, unsigned *most) {
  *least = 200000; *most = 700000; return 0; }
int nvmlDeviceSetPowerManagementLimit(void *d, unsigned v) {
  char path[512]; FILE *file; if (!MAY_SET) return 4;
  if (v < 200000 || v > 700000) return 2;
  limit_path(d, path, sizeof path); file = fopen(path, "w");
  if (!file) return 999;
  fprintf(file, "%u", v); fclose(file);
  limit_path(d, path, sizeof path); strcat(path, "-history"); file = fopen(path, "a");
  if (file) { fprintf(file, "%u\n", v); fclose(file); }
  return 0; }
int nvmlDeviceGetPowerManagementDefaultLimit(void *d, unsigned *v) { *v = 700000; return 0; }
int nvmlDeviceGetCurrPcieLinkWidth(void *d, unsigned *v) { *v = is_ill(d) ? WIDTH : 16; return 0; }
int nvmlDeviceGetTotalEccErrors(void *d, int type, int counter, unsigned long long *v) {
  *v = is_ill(d) && type == 1 && counter == 0 ? ERRORS : 0; return 0; }
int nvmlDeviceGetRemappedRows(void *d, unsigned *c, unsigned *u, unsigned *wait, unsigned *lost) {
  *c = *u = 0; *wait = is_ill(d) ? ROW_PENDING : 0; *lost = is_ill(d) ? ROW_LOST : 0; return 0; }
int nvmlDeviceGetMigMode(void *d, unsigned *now, unsigned *then) {
  *now = *then = is_ill(d) ? SPLIT : 0; return 0; }
#endif
"""


def build_driver(folder: Path, **flags: object) -> Path:
    """libnvidia-ml.so.1 in `folder`, of which LD_LIBRARY_PATH makes this machine's driver."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler to stand in for the driver's library")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stub.c").write_text(SOURCE)
    library = folder / "libnvidia-ml.so.1"
    words = [f"-D{name}={value}" for name, value in flags.items()]
    subprocess.run(
        [compiler, "-shared", "-fPIC", *words, "-o", library, folder / "stub.c"], check=True
    )
    return library


def machine(folder: Path, **flags: object) -> dict[str, str]:
    """The environment of a machine with the driver that `flags` describe, made in `folder`."""
    build_driver(folder, **flags)
    kept = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    return {**kept, "LD_LIBRARY_PATH": str(folder)}


def finding(outcome: Outcome, name: str) -> dict[str, Any]:
    assert outcome.out, outcome
    found = [one for one in outcome.json["findings"] if one["name"] == name]
    assert len(found) == 1, (name, outcome.json["findings"])
    assert found[0]["seen"], "what"
    assert found[0]["why"], "why"
    assert found[0]["level"] == "ok" or found[0]["mend"], "and what to type"
    return found[0]
