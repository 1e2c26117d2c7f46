-- Every load that wrk sends. What to send comes by the environment:
--   BENCH_KIND     usage, replay, bulk, mixed or get
--   BENCH_RUN      a text no other run has: part of every Idempotency-Key
--   BENCH_PAIRS    agents per tenant, all of one service
--   BENCH_TENANTS  0: no API key; else the tenants the database was filled with
--   BENCH_ITEMS    items of a bulk request; BENCH_KEYS: keys that are repeated; BENCH_PATH: what is read ({agent} is drawn)
--   BENCH_KEY_FORM short (as long as the textbook's) or uuid
--   BENCH_STATUSES set: answers are counted by status, which costs wrk time
local kind = os.getenv("BENCH_KIND")
local run = os.getenv("BENCH_RUN")
local pairs_of_tenant = tonumber(os.getenv("BENCH_PAIRS"))
local tenants = tonumber(os.getenv("BENCH_TENANTS"))
local items = tonumber(os.getenv("BENCH_ITEMS"))
local repeated_keys = tonumber(os.getenv("BENCH_KEYS"))
local path_template = os.getenv("BENCH_PATH")
local is_uuid = os.getenv("BENCH_KEY_FORM") == "uuid"

-- Steps through all numbers below 10^12 without meeting one twice, in an order that looks random to a B-tree, like the
-- textbook's keys: the multiplier shares no factor with the modulus, and the products stay exact for 14 million keys.
local MODULUS, MULTIPLIER = 1000000000000, 618033989

local threads = {}
local key_count = 0
local bulk_bodies = {}

function setup(thread)
  thread:set("thread_number", #threads)
  table.insert(threads, thread)
end

function init()
  math.randomseed(thread_number + #run * 1000 + tonumber(run:match("%d+")))
  for number = 1, (kind == "bulk" or kind == "mixed") and 200 or 0 do
    bulk_bodies[number] = bulk_body(items)
  end
  -- Threads repeat the keys from different places.
  key_count = kind == "replay" and thread_number * 4999 or 0
end

local function agent()
  return "agent-" .. math.random(1, pairs_of_tenant)
end

local function usage_body(name)
  return '{"agent":"' .. name .. '","serviceId":"svc","requests":3}'
end

function bulk_body(count)
  local list = {}
  for place = 1, count do
    list[place] = usage_body(agent())
  end
  return '{"items":[' .. table.concat(list, ",") .. "]}"
end

local function new_key()
  key_count = key_count + 1
  local scrambled = key_count * MULTIPLIER % MODULUS
  if is_uuid then
    return string.format("%08x-%04x-4000-8000-%04x%08x", scrambled % 4294967296, math.floor(scrambled / 4294967296),
      thread_number, tonumber(run:match("%d+")))
  end
  return string.format("k-%d-%s%d", scrambled, run, thread_number)
end

local function caller()
  if tenants == 0 then
    return ""
  end
  return string.format("X-API-Key: apk_%08x%024x\r\n", math.random(1, tenants), 0)
end

local function post(path, key, body)
  return "POST " .. path .. " HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n" .. caller()
    .. "Idempotency-Key: " .. key .. "\r\nContent-Length: " .. #body .. "\r\n\r\n" .. body
end

local function get(path)
  return "GET " .. path .. " HTTP/1.1\r\nHost: 127.0.0.1\r\n" .. caller() .. "\r\n"
end

local function usage()
  return post("/api/v1/usage", new_key(), usage_body(agent()))
end

local function bulk()
  return post("/api/v1/usage/bulk", new_key(), bulk_bodies[math.random(1, #bulk_bodies)])
end

local kinds = {
  usage = usage,
  bulk = bulk,
  replay = function()
    key_count = key_count % repeated_keys + 1
    local name = "agent-" .. ((key_count - 1) % pairs_of_tenant + 1)
    return post("/api/v1/usage", "r-" .. run .. "-" .. key_count, usage_body(name))
  end,
  mixed = function()
    local draw = math.random(1, 100)
    if draw <= 80 then
      return usage()
    elseif draw <= 90 then
      return bulk()
    elseif draw <= 95 then
      return post("/api/v1/settle", new_key(), '{"agent":"' .. agent() .. '","serviceId":"svc"}')
    end
    return get("/api/v1/usage/" .. agent() .. "/svc")
  end,
  get = function()
    return get((path_template:gsub("{agent}", agent())))
  end,
}

request = kinds[kind]

if os.getenv("BENCH_STATUSES") then
  statuses = {}
  function response(status)
    local name = tostring(status)
    statuses[name] = (statuses[name] or 0) + 1
  end
end

function done(summary, latency)
  local counts = {}
  for _, thread in ipairs(threads) do
    for status, count in pairs(thread:get("statuses") or {}) do
      counts[status] = (counts[status] or 0) + count
    end
  end
  local texts = {}
  for status, count in pairs(counts) do
    table.insert(texts, string.format('"%s":%d', status, count))
  end
  local errors = summary.errors
  io.write(string.format(
    'BENCH {"requests":%d,"seconds":%f,"p50_ms":%f,"p99_ms":%f,"max_ms":%f,"refused":%d,"broken":%d,"statuses":{%s}}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    latency.max / 1e3, errors.status, errors.connect + errors.read + errors.write + errors.timeout,
    table.concat(texts, ",")))
end
