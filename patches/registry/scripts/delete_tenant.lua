-- Remove a tenant with its tasks and keys, and free the blobs that no version of another one names.
-- The keys of the versions and states of its tasks (arg.tasks) follow the usual ones, of which there
-- are arg.own_keys.
local tenant = load_tenant()
if tenant and tenant.deleted_ms then return fail('tenant_not_found') end
local prefix = arg.tenant .. '/'
local listed, task_count = {}, 0
for _, field in ipairs(arg.tasks) do listed[field] = true end
for _, field in ipairs(redis.call('HKEYS', TASKS)) do
  if string.sub(field, 1, #prefix) == prefix then
    if not listed[field] then return fail('changed') end
    task_count = task_count + 1
  end
end
if task_count ~= #arg.tasks then return fail('changed') end
local key_ids = {}
local stored_keys = redis.call('HGETALL', API_KEYS)
for at = 1, #stored_keys, 2 do
  if cjson.decode(stored_keys[at + 1]).tenant == arg.tenant then
    key_ids[#key_ids + 1] = stored_keys[at]
  end
end
if task_count + #key_ids == 0 and not (tenant and tenant.revision > 0) then
  return fail('tenant_not_found')
end

local revision = new_revision()
local version_count, blob_count = 0, 0
for at = arg.own_keys + 1, #KEYS, 2 do
  for _, digest in ipairs(redis.call('HKEYS', KEYS[at])) do
    version_count = version_count + 1
    if redis.call('HINCRBY', REFS, digest, -1) <= 0 then
      blob_count = blob_count + 1
      redis.call('HDEL', REFS, digest)
      redis.call('ZREM', UNUSED, digest)
      local location = redis.call('HGET', BLOBS, digest)
      if location then
        redis.call('HDEL', BLOBS, digest)
        redis.call('ZADD', GARBAGE, now_ms, location)
      end
    end
  end
  redis.call('DEL', KEYS[at], KEYS[at + 1])
end
for _, field in ipairs(arg.tasks) do
  redis.call('HDEL', TASKS, field)
  redis.call('HDEL', AVAILABILITY, field)
end
for _, key_id in ipairs(key_ids) do
  redis.call('HDEL', API_KEYS, key_id)
  redis.call('HDEL', KEY_USES, key_id)
end
for _, hook in ipairs(redis.call('HKEYS', WEBHOOKS)) do
  if string.sub(hook, 1, #prefix) == prefix then
    redis.call('HDEL', WEBHOOKS, hook)
    redis.call('HDEL', WEBHOOK_STATES, hook)
  end
end
redis.call('HSET', TENANTS, arg.tenant, cjson.encode({
  revision = revision, deleted_ms = now_ms, deleted_revision = revision}))
record(revision, 'delete_tenant', {tenant = arg.tenant, note = string.format(
  '%d tasks, %d versions, %d keys, %d bundles erased',
  task_count, version_count, #key_ids, blob_count)})
return done({revision = revision, erased = {
  tasks = task_count, versions = version_count, keys = #key_ids, bundles = blob_count}})
