-- Add outcomes of the versions of a task's traffic, and return their sums within the guard's window.
-- KEYS[1] is a hash: version, slot of time and "n" or "hits" -> a sum. The window has arg.slots
-- slots of arg.slot_ms; what is older is dropped. Without arg.added nothing is written but that.
local arg = cjson.decode(ARGV[1])
local clock = redis.call('TIME')
local slot = math.floor((clock[1] * 1000 + clock[2] / 1000) / arg.slot_ms)
for _, each in ipairs(arg.added) do
  redis.call('HINCRBY', KEYS[1], each.version .. ' ' .. slot .. ' n', each.outcomes)
  redis.call('HINCRBYFLOAT', KEYS[1], each.version .. ' ' .. slot .. ' hits', each.hits)
end
if #arg.added > 0 then redis.call('PEXPIRE', KEYS[1], (arg.slots + 1) * arg.slot_ms) end
local sums = {}
local stored = redis.call('HGETALL', KEYS[1])
for at = 1, #stored, 2 do
  local version, of_slot, what = string.match(stored[at], '^(%S+) (%d+) (%a+)$')
  if tonumber(of_slot) <= slot - arg.slots then
    redis.call('HDEL', KEYS[1], stored[at])
  else
    local sum = sums[version] or {n = 0, hits = 0}
    sum[what] = sum[what] + stored[at + 1]
    sums[version] = sum
  end
end
return cjson.encode(sums)
