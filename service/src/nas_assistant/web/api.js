// SPDX-License-Identifier: GPL-3.0-or-later
// Copyright: nas.assistant contributors
// The calls of the API that the pages need.

const PATIENCE = 10_000; // ms, for what takes none

/** `code` is the API's, or one of ours: network, broken. `wait`: seconds. `servedBy`: who said it, where a model did. */
export class ApiError extends Error {
  constructor(code, message = '', wait = 0, servedBy = null) {
    super(message);
    this.note = { code, message, wait };
    this.servedBy = servedBy;
  }
}

export async function listModels(key) {
  const response = await request('/v1/models', key);
  // Others go on with a text, or make vectors of it.
  const models = (await response.json()).data.filter(({ kind }) => !kind || kind === 'chat');
  return models.map(({ id, served_by: servedBy }) => ({ id, outside: isOutside(servedBy) }));
}

/** Whether text leaves the house for who is named so. */
export function isOutside(servedBy) {
  return Boolean(servedBy?.startsWith('cloud'));
}

/** The service's state, as it is told to admins. */
export async function readStatus(key) {
  const response = await request('/admin/status', key, { signal: AbortSignal.timeout(PATIENCE) });
  return response.json().catch(() => {
    throw new ApiError('network');
  });
}

/**
 * Ask for an answer and yield its parts as they come: {thought}, {text}, {servedBy}, {usage}, {finish}.
 *
 * Throws ApiError, or an AbortError when `signal` says so.
 */
export async function* ask(key, body, signal) {
  const options = { stream: true, stream_options: { include_usage: true } };
  const response = await request('/v1/chat/completions', key, {
    method: 'POST',
    body: JSON.stringify({ ...body, ...options }),
    signal,
  });
  yield { servedBy: response.headers.get('x-served-by') };
  let complete = false;
  for await (const line of readLines(response)) {
    if (!line.startsWith('data:')) continue;
    const data = line.slice(5).trim();
    if (data === '[DONE]') return;
    const event = parse(data);
    if (event.error) throw new ApiError(event.error.code ?? 'other', event.error.message);
    const choice = event.choices?.[0];
    if (choice?.delta?.reasoning_content) yield { thought: choice.delta.reasoning_content };
    if (choice?.delta?.content) yield { text: choice.delta.content };
    if (choice?.finish_reason) yield { finish: choice.finish_reason };
    if (event.usage) yield { usage: event.usage, servedBy: event.usage.served_by };
    complete ||= Boolean(choice?.finish_reason);
  }
  if (!complete) throw new ApiError('broken');
}

async function request(path, key, options = {}) {
  const headers = { Authorization: `Bearer ${key}`, 'Content-Type': 'application/json' };
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: 'no-store' });
  } catch (error) {
    throw error.name === 'AbortError' ? error : new ApiError('network');
  }
  if (response.ok) return response;
  const error = await response.json().then((body) => body.error, () => null);
  throw new ApiError(
    error?.code ?? 'other',
    error?.message ?? `HTTP ${response.status}`,
    Number.parseInt(response.headers.get('retry-after'), 10),
    response.headers.get('x-served-by'),
  );
}

async function* readLines(response) {
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let held = '';
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      throw error.name === 'AbortError' ? error : new ApiError('broken');
    }
    if (part.done) return;
    const lines = (held + decoder.decode(part.value, { stream: true })).split('\n');
    held = lines.pop();
    yield* lines;
  }
}

function parse(data) {
  try {
    return JSON.parse(data);
  } catch {
    throw new ApiError('broken');
  }
}
