# Writes OUTPUT, a source file that holds the build's name.  Touches it only when the name changes.
#   cmake -DSOURCE=... -DOUTPUT=... [-DBUILD_ID=...] -P build_id.cmake
if(NOT BUILD_ID)
  execute_process(COMMAND git -C ${SOURCE} describe --always --dirty --tags --abbrev=12
    OUTPUT_VARIABLE BUILD_ID OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
endif()
if(NOT BUILD_ID)
  set(BUILD_ID "unknown")
endif()
set(text "#include \"config/build_id.h\"\n\nnamespace weir::config {\nstd::string_view BuildId() { return \"${BUILD_ID}\"; }\n}  // namespace weir::config\n")
if(EXISTS ${OUTPUT})
  file(READ ${OUTPUT} before)
endif()
if(NOT "${before}" STREQUAL "${text}")
  file(WRITE ${OUTPUT} "${text}")
endif()
