-- Every load that wrk sends. What to send comes by the environment:
--   BENCH_KIND      usage, bulk or get
--   BENCH_RUN       a text with a number that no other run has: part of every Idempotency-Key
--   BENCH_PAIRS     agents of each tenant, all of one service
--   BENCH_API_KEYS  API keys, of which each request draws one; none: the requests have no key
--   BENCH_ITEMS     items of a bulk request
--   BENCH_PATH      what is read; {agent} is drawn
--   BENCH_WAITS     1: a client that is refused waits for as long as Retry-After says
local kind = os.getenv("BENCH_KIND")
local run = os.getenv("BENCH_RUN")
local pairs_of_tenant = tonumber(os.getenv("BENCH_PAIRS"))
local items = tonumber(os.getenv("BENCH_ITEMS"))
local path_template = os.getenv("BENCH_PATH")
local api_keys = {}
for api_key in (os.getenv("BENCH_API_KEYS") or ""):gmatch("[^,]+") do
  table.insert(api_keys, api_key)
end

-- Steps through all numbers below 10^12 without meeting one twice, in an order that looks random to a B-tree, like the
-- baseline's keys: the multiplier shares no factor with the modulus, and the products stay exact for 14 million keys.
local MODULUS, MULTIPLIER = 1000000000000, 618033989

local threads = 0
local key_count = 0
local bulk_bodies = {}

function setup(thread)
  thread:set("thread_number", threads)
  threads = threads + 1
end

local function agent()
  return "agent-" .. math.random(1, pairs_of_tenant)
end

local function usage_body()
  return '{"agent":"' .. agent() .. '","serviceId":"svc","requests":3}'
end

function init()
  math.randomseed(thread_number + tonumber(run:match("%d+")) * 1000)
  for number = 1, kind == "bulk" and 200 or 0 do
    local list = {}
    for place = 1, items do
      list[place] = usage_body()
    end
    bulk_bodies[number] = '{"items":[' .. table.concat(list, ",") .. "]}"
  end
end

local function api_key()
  return #api_keys == 0 and "" or "X-API-Key: " .. api_keys[math.random(1, #api_keys)] .. "\r\n"
end

local function post(path, body)
  key_count = key_count + 1
  local key = string.format("k-%d-%s%d", key_count * MULTIPLIER % MODULUS, run, thread_number)
  return "POST " .. path .. " HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n" .. api_key()
    .. "Idempotency-Key: " .. key .. "\r\nContent-Length: " .. #body .. "\r\n\r\n" .. body
end

local kinds = {
  usage = function()
    return post("/api/v1/usage", usage_body())
  end,
  bulk = function()
    return post("/api/v1/usage/bulk", bulk_bodies[math.random(1, #bulk_bodies)])
  end,
  get = function()
    return "GET " .. path_template:gsub("{agent}", agent()) .. " HTTP/1.1\r\nHost: 127.0.0.1\r\n" .. api_key() .. "\r\n"
  end,
}

request = kinds[kind]

if os.getenv("BENCH_WAITS") == "1" then
  local wait_ms = 0
  response = function(status, headers)
    wait_ms = tonumber(headers["retry-after"] or 0) * 1000
  end
  delay = function()
    return wait_ms
  end
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    'BENCH {"requests":%d,"seconds":%f,"p50_ms":%f,"p99_ms":%f,"refused":%d,"broken":%d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
