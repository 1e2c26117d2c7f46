// Requests to the API. The admin key is in the memory of this module only, not in a cookie or in storage.

let adminKey = null;
let session = new AbortController();

/** Begins a new session, and cancels the reads of the previous one. `null` signs out. */
export function signInWith(key) {
  session.abort();
  session = new AbortController();
  adminKey = key;
}

/** A refused or failed request. `status` is 0 without a response. */
export class RequestError extends Error {
  constructor(status, code, message, requestId) {
    super(message);
    Object.assign(this, { status, code, requestId });
  }

  /** Whether the key is not, or no longer, the admin key: the operator gets these statuses for no other reason. */
  get isRefused() {
    return this.status === 401 || this.status === 403;
  }

  /** Whether the request may have been executed although it failed here. Even a 2xx can be unreadable. */
  get isUnknown() {
    return this.status < 400 || this.status >= 500;
  }

  /** Whether the same request may succeed later. */
  get isRetryable() {
    return this.isUnknown || this.status === 429;
  }
}

/**
 * Sends a request and returns the body of its response, or `null` if it has none. `tenant` is the tenant to act for. A read whose
 * session ends never returns, so its result is not shown.
 */
export async function send(method, path, { body, tenant } = {}) {
  const signal = method === "GET" ? session.signal : undefined;
  const headers = {};
  if (adminKey) headers["X-API-Key"] = adminKey;
  if (tenant) headers["X-Tenant-Id"] = tenant;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response, text;
  try {
    response = await fetch(path, {
      method,
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      cache: "no-store",
      credentials: "omit",
      redirect: "error",
      signal,
    });
    text = await response.text();
  } catch {
    if (signal?.aborted) return new Promise(() => {});
    throw new RequestError(0, "unreachable", "The service did not respond. It is unknown whether the request was executed.");
  }
  let answer = null;
  try {
    answer = text ? JSON.parse(text) : null;
  } catch {
    // A proxy may return something other than JSON.
    if (response.ok) throw new RequestError(response.status, "unreadable", "The response is not JSON.");
  }
  if (response.ok) return answer;
  const { error = "error", message = response.statusText, requestId } = answer ?? {};
  throw new RequestError(response.status, error, message, requestId);
}

/** Sends a GET with the parameters that are not empty. */
export function get(path, parameters = {}, options = {}) {
  const given = Object.entries(parameters).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  const query = new URLSearchParams(given).toString();
  return send("GET", query ? `${path}?${query}` : path, options);
}
